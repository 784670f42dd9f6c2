"""Encode training pictures to latents: `python workflow/scripts/encode.py --help`."""

from pathlib import Path

from sdlora import command
from sdlora.encode import encode_dataset

command.run(
    lambda recipe, args: encode_dataset(recipe, args.base, args.folder),
    folder=Path,
    base=str,
)
