"""Choose a checkpoint, and draw its test pictures: `python workflow/scripts/choose.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.choose.recipe import ChooseRecipe


def work(recipe: ChooseRecipe) -> list[Path]:
    from sdlora.stages.choose.choose import choose_version  # diffusers starts CUDA: not before the job has a card

    return choose_version(recipe)


command.run(ChooseRecipe, work)
