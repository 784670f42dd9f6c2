"""Make a picture of the chosen checkpoint move: `python workflow/scripts/animate.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.animate.recipe import AnimateRecipe


def work(recipe: AnimateRecipe) -> list[Path]:
    from sdlora.stages.animate.animate import animate_version  # diffusers starts CUDA: not before the job has a card

    return animate_version(recipe)


command.run(AnimateRecipe, work)
