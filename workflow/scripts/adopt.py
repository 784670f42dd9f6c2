"""Take a LoRA from elsewhere: `python workflow/scripts/adopt.py --help`."""

from sdlora.flow import command
from sdlora.stages.adopt.adopt import adopt
from sdlora.stages.adopt.recipe import AdoptRecipe

command.run(AdoptRecipe, adopt)
