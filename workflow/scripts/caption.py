"""Caption fitted pictures with BLIP: `python workflow/scripts/caption.py --help`."""

import argparse
from pathlib import Path
from typing import Any

from sdlora import command
from sdlora.caption import Captioner, caption_dataset
from sdlora.params import Caption
from sdlora.store import STORE


def work(recipe: dict[str, Any], args: argparse.Namespace) -> list[Path]:
    settings = Caption(**recipe["caption"])
    captioner = Captioner(recipe["captioner"], recipe["captioner_revision"], settings, recipe["threads"])
    return caption_dataset(recipe, captioner, args.folder, STORE / "caption")


command.run(work, folder=Path)
