"""The references that choose have been drawn at every checkpoint; those that report are drawn where one was chosen."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from sdlora import choices, records
from sdlora.config.evaluate import Evaluate
from sdlora.errors import DataError
from sdlora.stages.choose.recipe import ChooseRecipe
from sdlora.stages.evaluate.choose import Choice, choose
from sdlora.stages.evaluate.metric import Metric
from sdlora.stages.evaluate.recipe import MeasuringRecipe
from sdlora.stages.evaluate.run import CHOICE, Evaluator, table_of
from sdlora.stages.sample.parts import FOLDERS, INDEX, TEST, VALIDATION, drawn
from sdlora.stages.sample.sample import draw, loras_of, parts_of, prompts_of


def choose_version(recipe: ChooseRecipe) -> list[Path]:
    """Choose by the pictures of `samples/`, and draw the test's at step 0 and at the checkpoints that were chosen.

    Pictures of these checkpoints alone are missing for another choice: the store keeps the others.

    Args:
        recipe: The metrics that choose, a person's choice, and all that is said of drawing.

    Returns:
        The files written: `choice.json`, and `test_samples/` as the stage `sample` writes its own; without a test its
        index is empty.

    Raises:
        DataError: If there is nothing to choose by, or the person's step is no checkpoint.
    """
    validation, test = parts_of(recipe)
    held_out = [str(row["id"]) for row in (*validation, *test)]
    choice = choose_by_samples(recipe.evaluate, recipe.folder, recipe.references, held_out, recipe.chosen, recipe)
    records.write_json(recipe.folder / CHOICE, asdict(choice))
    out = recipe.folder / FOLDERS[TEST]
    if not test:
        shutil.rmtree(out, ignore_errors=True)
        records.write_jsonl(out / INDEX, [])
        return [recipe.folder / CHOICE, out / INDEX]
    loras = loras_of(recipe)
    wanted = {step: loras[step] for step in choice.steps}
    return [recipe.folder / CHOICE, *draw(recipe, prompts_of(test, recipe.sample.report_seeds), wanted, out)]


def choose_by_samples(
    settings: Evaluate,
    result: Path,
    references: Path,
    held_out: list[str],
    chosen: int | None = None,
    recipe: MeasuringRecipe | None = None,
) -> Choice:
    """Measure what chooses, and no more; the choice holds what was measured.

    Args:
        settings: The metrics that choose.
        result: `results/<version>`.
        references: The fitted set that holds the references.
        held_out: The ids of all references, also of those that report.
        chosen: The step that a person chose; None leaves it to the rule.
        recipe: For metrics that look at more than pictures.

    Raises:
        DataError: If there is nothing to choose by, or the person's step is no checkpoint.
    """
    metrics: Mapping[str, Metric] = {name: choices.pick(choices.METRICS, name) for name in settings.choose_by}
    rows = drawn(result, VALIDATION)
    if not rows:
        raise DataError(f"{result}: no samples, because the dataset has no references; set datasets.<name>.held_out")
    pictures = Evaluator(metrics, result, references, held_out, recipe).measure(rows)
    choice = choose(table_of(pictures, metrics), metrics, settings.choose_by, chosen)
    return replace(choice, measured={row["file"]: {name: row[name] for name in metrics} for row in pictures})
