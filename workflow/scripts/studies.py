"""Say what studies found: `python workflow/scripts/studies.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.studies.findings import write_findings
from sdlora.stages.studies.recipe import StudiesRecipe


def work(recipe: StudiesRecipe) -> list[Path]:
    return write_findings(recipe, recipe.folder.parent, recipe.folder)


command.run(StudiesRecipe, work)
