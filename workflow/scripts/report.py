"""Write a version's page: `python workflow/scripts/report.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.report.page import write_version
from sdlora.stages.report.recipe import ReportRecipe


def work(recipe: ReportRecipe) -> list[Path]:
    return write_version(recipe.version, recipe.settings, recipe.folder, recipe.references, recipe.dataset)


command.run(ReportRecipe, work)
