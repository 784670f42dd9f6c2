"""Draw the choosing references' prompts at every checkpoint: `python workflow/scripts/sample.py --help`."""

from sdlora.flow import command
from sdlora.stages.sample.recipe import SampleRecipe
from sdlora.stages.sample.sample import sample_version

command.run(SampleRecipe, sample_version)
