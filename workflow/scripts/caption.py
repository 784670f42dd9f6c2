"""Caption fitted pictures with BLIP: `python workflow/scripts/caption.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.flow.store import STORE
from sdlora.stages.caption.caption import Captioner, caption_dataset
from sdlora.stages.caption.recipe import CaptionRecipe


def work(recipe: CaptionRecipe) -> list[Path]:
    captioner = Captioner(recipe.captioner, recipe.captioner_revision, recipe.caption, recipe.threads)
    return caption_dataset(recipe, captioner, recipe.folder, STORE / "caption")


command.run(CaptionRecipe, work)
