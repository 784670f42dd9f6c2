"""Write a version's page: `python workflow/scripts/report.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.flow.inputs import VOTES
from sdlora.stages.report.page import write_version
from sdlora.stages.report.recipe import ReportRecipe
from sdlora.stages.report.votes import read_votes


def work(recipe: ReportRecipe) -> list[Path]:
    return write_version(recipe, read_votes(VOTES))


command.run(ReportRecipe, work)
