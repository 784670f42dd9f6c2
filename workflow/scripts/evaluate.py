"""Measure samples against references: `python workflow/scripts/evaluate.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.evaluate.recipe import EvaluateRecipe
from sdlora.stages.evaluate.run import evaluate_version


def work(recipe: EvaluateRecipe) -> list[Path]:
    return evaluate_version(recipe.evaluate, recipe.folder, recipe.references, recipe)


command.run(EvaluateRecipe, work)
