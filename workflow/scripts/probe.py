"""Train a search's trial up to a checkpoint and measure it: `python workflow/scripts/probe.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.probe.recipe import ProbeRecipe


def work(recipe: ProbeRecipe) -> list[Path]:
    from sdlora.stages.probe.probe import probe  # diffusers starts CUDA: not before the job has a card

    return probe(recipe)


command.run(ProbeRecipe, work)
