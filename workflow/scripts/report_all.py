"""Write the page over all versions: `python workflow/scripts/report_all.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.report.page import write_index
from sdlora.stages.report.recipe import ReportAllRecipe


def work(recipe: ReportAllRecipe) -> list[Path]:
    results = recipe.folder.parent
    return write_index(recipe.versions, results, recipe.folder, recipe.references, recipe.datasets)


command.run(ReportAllRecipe, work)
