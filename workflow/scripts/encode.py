"""Encode training pictures to latents: `python workflow/scripts/encode.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.encode.recipe import EncodeRecipe


def work(recipe: EncodeRecipe) -> list[Path]:
    from sdlora.stages.encode.encode import encode_dataset  # diffusers starts CUDA: not before the job has a card

    return encode_dataset(recipe)


command.run(EncodeRecipe, work)
