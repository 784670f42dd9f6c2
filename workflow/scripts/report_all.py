"""Write the page over all versions: `python workflow/scripts/report_all.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.flow.inputs import VOTES
from sdlora.stages.report.page import write_index
from sdlora.stages.report.recipe import ReportAllRecipe
from sdlora.stages.report.votes import read_votes


def work(recipe: ReportAllRecipe) -> list[Path]:
    results = recipe.folder.parent
    votes = read_votes(VOTES)
    sets = (recipe.references, recipe.datasets)
    return write_index(recipe.versions, results, recipe.folder, *sets, votes, recipe.trainings, recipe.folders)


command.run(ReportAllRecipe, work)
