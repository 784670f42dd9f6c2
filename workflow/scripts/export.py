"""Write a trained version's files for other tools, and its card: `python workflow/scripts/export.py --help`."""

from sdlora.flow import command
from sdlora.stages.export.export import export_version
from sdlora.stages.export.recipe import ExportRecipe

command.run(ExportRecipe, export_version)
