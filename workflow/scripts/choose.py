"""Choose a checkpoint, and draw its test pictures: `python workflow/scripts/choose.py --help`."""

from sdlora.flow import command
from sdlora.stages.choose.choose import choose_version
from sdlora.stages.choose.recipe import ChooseRecipe

command.run(ChooseRecipe, choose_version)
