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
    identity, store = recipe["captioner_identity"], STORE / "caption"
    return caption_dataset(settings, captioner, identity, recipe["trigger"], recipe["override"], args.folder, store)


command.run(work, folder=Path)
