"""Train a search's trial up to a checkpoint and measure it: `python workflow/scripts/probe.py --help`."""

from sdlora.flow import command
from sdlora.stages.probe.probe import probe
from sdlora.stages.probe.recipe import ProbeRecipe

command.run(ProbeRecipe, probe)
