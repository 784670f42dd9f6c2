"""Train one version's LoRA: `python workflow/scripts/train.py --help`."""

from sdlora.flow import command
from sdlora.stages.train.recipe import TrainRecipe
from sdlora.stages.train.run import train_version

command.run(TrainRecipe, train_version)
