"""Write the page over all versions: `python workflow/scripts/report_all.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.report.page import write_index
from sdlora.stages.report.recipe import ReportAllRecipe


def work(recipe: ReportAllRecipe) -> list[Path]:
    return write_index(recipe.versions, recipe.folder.parent, recipe.folder)


command.run(ReportAllRecipe, work)
