"""Caption fitted pictures: `python workflow/scripts/caption.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.flow.store import STORE
from sdlora.stages.caption.caption import caption_dataset, captioner_of
from sdlora.stages.caption.recipe import CaptionRecipe


def work(recipe: CaptionRecipe) -> list[Path]:
    return caption_dataset(recipe, captioner_of(recipe), recipe.folder, STORE / "caption")


command.run(CaptionRecipe, work)
