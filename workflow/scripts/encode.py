"""Encode training pictures to latents: `python workflow/scripts/encode.py --help`."""

from sdlora.flow import command
from sdlora.stages.encode.encode import encode_dataset
from sdlora.stages.encode.recipe import EncodeRecipe

command.run(EncodeRecipe, encode_dataset)
