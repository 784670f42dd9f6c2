"""Write both orientations of the training pictures: `python workflow/scripts/flip.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.flip.flip import flip_dataset
from sdlora.stages.flip.recipe import FlipRecipe


def work(recipe: FlipRecipe) -> list[Path]:
    return flip_dataset(recipe.folder, recipe.mirror, recipe.swap_words, recipe.repeats, recipe.kohya, recipe.trigger)


command.run(FlipRecipe, work)
