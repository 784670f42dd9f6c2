"""Encode training pictures to latents: `python workflow/scripts/encode.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.encode.encode import encode_dataset

command.run(
    lambda recipe, args: encode_dataset(recipe, args.base, args.folder),
    folder=Path,
    base=str,
)
