"""Draw the choosing references' prompts at every checkpoint: `python workflow/scripts/sample.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.sample.recipe import SampleRecipe


def work(recipe: SampleRecipe) -> list[Path]:
    from sdlora.stages.sample.sample import sample_version  # diffusers starts CUDA: not before the job has a card

    return sample_version(recipe)


command.run(SampleRecipe, work)
