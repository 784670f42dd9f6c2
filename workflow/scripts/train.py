"""Train one version's LoRA: `python workflow/scripts/train.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.train.recipe import TrainRecipe


def work(recipe: TrainRecipe) -> list[Path]:
    from sdlora.stages.train.run import train_version  # diffusers starts CUDA: not before the job has a card

    return train_version(recipe)


command.run(TrainRecipe, work)
