"""Caption fitted pictures with BLIP: `python workflow/scripts/caption.py --help`."""

import argparse
from pathlib import Path
from typing import Any

from sdlora.config.params import Caption
from sdlora.flow import command
from sdlora.flow.store import STORE
from sdlora.stages.caption.caption import Captioner, caption_dataset


def work(recipe: dict[str, Any], args: argparse.Namespace) -> list[Path]:
    settings = Caption(**recipe["caption"])
    captioner = Captioner(recipe["captioner"], recipe["captioner_revision"], settings, recipe["threads"])
    return caption_dataset(recipe, captioner, args.folder, STORE / "caption")


command.run(work, folder=Path)
