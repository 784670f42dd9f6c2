"""A trial at a checkpoint, as far as a search has to know it: the references that report are not looked at."""

from pathlib import Path

import numpy as np

from sdlora import choices, records
from sdlora.errors import Diverged
from sdlora.stages.evaluate.choose import choose
from sdlora.stages.evaluate.run import Evaluator, table_of
from sdlora.stages.probe.recipe import PROBE, ProbeRecipe
from sdlora.stages.sample.parts import FOLDERS, VALIDATION, drawn
from sdlora.stages.sample.sample import draw, parts_of, prompts_of
from sdlora.stages.train.run import train_until


def probe(recipe: ProbeRecipe) -> list[Path]:
    """Train up to the last of `steps`, and write the metric's mean at each of them over the references that choose.

    What is trained and drawn stays in the store, from which the next probe and the stages `train` and `sample` go on.

    Returns:
        The files written. `probe.json`: `values` by step; `chosen`, the step that the rule of the stage `choose`
        chooses, where the training ends here; `run`, its key in the store; `diverged`, why there are no values.
    """
    out = recipe.folder
    folder = out / FOLDERS[VALIDATION]
    found: records.Row = {"by": recipe.evaluate.choose_by[0], "run": recipe.run.name, "values": {}}
    found |= {"chosen": None, "diverged": None}
    try:
        train_until(recipe.training, recipe.steps[-1])
    except Diverged as error:  # that these settings come to nothing is what was asked
        print(f"probe: {error}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        records.write_json(out / PROBE, {**found, "diverged": str(error).split(";")[0]})
        return [out / PROBE]
    validation, test = parts_of(recipe)
    prompts = prompts_of(validation, recipe.sample.seeds)
    files = draw(recipe, prompts, {step: recipe.lora_of(step) for step in recipe.steps}, folder)
    metrics = {name: choices.pick(choices.METRICS, name) for name in recipe.evaluate.choose_by}
    held_out = [str(row["id"]) for row in (*validation, *test)]
    pictures = Evaluator(metrics, out, recipe.references, held_out, recipe).measure(drawn(out, VALIDATION))
    table = table_of(pictures, metrics)
    found["values"] = {str(step): float(np.mean(values)) for (_, step), values in table.values.items()}
    if recipe.is_last:
        found["chosen"] = choose(table, metrics, recipe.evaluate.choose_by).step
    records.write_json(out / PROBE, found)
    return [out / PROBE, *files]
