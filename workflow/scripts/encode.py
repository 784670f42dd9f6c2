"""Encode training pictures to latents: `python workflow/scripts/encode.py --help`."""

import argparse
from pathlib import Path
from typing import Any

from sdlora import command
from sdlora.encode import encode_dataset
from sdlora.params import Base, Encode


def work(recipe: dict[str, Any], args: argparse.Namespace) -> list[Path]:
    settings, base = Encode(**recipe["encode"]), Base(**recipe["base"])
    return encode_dataset(settings, base, recipe["base_identity"], args.base, args.folder, recipe["threads"])


command.run(work, folder=Path, base=str)
