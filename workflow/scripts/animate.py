"""Make a picture of the chosen checkpoint move: `python workflow/scripts/animate.py --help`."""

from sdlora.flow import command
from sdlora.stages.animate.animate import animate_version
from sdlora.stages.animate.recipe import AnimateRecipe

command.run(AnimateRecipe, animate_version)
