"""Fit a dataset's pictures to a square or to buckets: `python workflow/scripts/fit.py --help`."""

from pathlib import Path

from sdlora import records
from sdlora.flow import command
from sdlora.stages.fit.fit import fit_dataset
from sdlora.stages.fit.recipe import FitRecipe


def work(recipe: FitRecipe) -> list[Path]:
    made_by = records.canonical_json([recipe.code, recipe.software])
    return fit_dataset(recipe.fit, recipe.source, recipe.folder, recipe.masks, made_by)


command.run(FitRecipe, work)
