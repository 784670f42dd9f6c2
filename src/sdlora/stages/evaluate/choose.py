"""Which checkpoint is best, by a rule that is written beside the answer, and what may be said of it.

References are in order of their content's hash. The first share of them chooses (validation), the others report
(test): the checkpoint that happens to suit the references it was chosen by is not called better for that.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sdlora.config.params import Evaluate
from sdlora.errors import DataError
from sdlora.stages.evaluate.mean_rank import MEAN_RANK
from sdlora.stages.evaluate.metric import Metric
from sdlora.stages.evaluate.statistics import LEAST_REFERENCES, earliest_within_one_error, smallest_detectable
from sdlora.stages.evaluate.tables import Values, difference, reported

NO_TEST = (
    f"there is no independent test, which takes {LEAST_REFERENCES} references for the rule to choose by and "
    f"{LEAST_REFERENCES} others, so it is not called better"
)
BY_A_PERSON = "a person chose it, who may have seen the test's pictures, so it is not called better"


def split(count: int, validation: float) -> tuple[list[int], list[int]]:
    """Columns of the references that choose, and of those that report.

    Where either part would have fewer than 5, all choose and none reports.
    """
    chosen_by = round(count * validation)
    if min(chosen_by, count - chosen_by) < LEAST_REFERENCES:
        return [*range(count)], []
    return [*range(chosen_by)], [*range(chosen_by, count)]


def best_step(values: Values, metric: Metric, columns: Sequence[int]) -> int:
    """The earliest trained step within one standard error of the best, on some of the references."""
    sign = 1 if metric.higher_is_better else -1
    scores = {
        step: [sign * found[column] for column in columns]
        for (name, step), found in values.items()
        if name == metric.name and step
    }
    return earliest_within_one_error(scores)


def explain(
    values: Values,
    references: Sequence[str],
    metrics: Mapping[str, Metric],
    settings: Evaluate,
    chosen: int | None = None,
) -> dict[str, Any]:
    """What `best.json` holds.

    A person's choice takes the rule's place. Whoever looks at pictures looks at the test's, too: where the two differ
    the test is no independent one, and nothing is called better.

    Args:
        values: One value a reference.
        references: Their ids, in the same order.
        metrics: What was measured, by name.
        settings: The metric that chooses, the share of the references, resamples.
        chosen: The step that a person chose; None leaves it to the rule.

    Returns:
        `best_step`, the `rule`, and `why` in words; `overruled`: what the rule chose and said, where a person chose
        otherwise; `validation` and `test` (None where there is none), each with its
        `references` and a metric's `figures`; `resolved`: whether it beats step 0 for sure; `smallest_detectable`:
        the true difference in `choose_by` that would have been found in 80 % of cases; `warnings`.

    Raises:
        DataError: If the person's step is no checkpoint; names those that are.
    """
    metric = metrics[settings.choose_by[0] if len(settings.choose_by) == 1 else MEAN_RANK.name]
    validation, test = split(len(references), settings.validation)
    steps = sorted({step for _, step in values if step})
    if chosen is not None and chosen not in steps:
        raise DataError(f"chosen is {chosen}, but the checkpoints are {', '.join(map(str, steps))}")
    by_rule = best_step(values, metric, validation)
    if chosen not in (None, by_rule):
        rules = explain(values, references, metrics, settings)
        overruled = {key: rules[key] for key in ("best_step", "why", "resolved")}
    else:
        overruled = None
    step = chosen or by_rule
    found: dict[str, Any] = {
        "best_step": step,
        "chosen": chosen,
        "overruled": overruled,
        "choose_by": metric.name,
        "higher_is_better": {name: entry.higher_is_better for name, entry in metrics.items()},
        "references": [*references],
        "validation": _figures(values, step, references, validation, metrics, settings.bootstrap_samples),
        "test": _figures(values, step, references, test, metrics, settings.bootstrap_samples) if test else None,
        "warnings": _warnings(values, step, metrics, settings.bootstrap_samples),
    }
    extreme = "highest" if metric.higher_is_better else "lowest"
    part = f"{len(validation)} validation references" if test else f"all {len(references)} references"
    found["rule"] = (
        f"earliest of {len(steps)} checkpoints within one standard error of the {extreme} {_mean_of(metric)} on {part}"
        + (f" (over {', '.join(settings.choose_by)})" if len(settings.choose_by) > 1 else "")
    )
    deltas = [values[metric.name, step][column] - values[metric.name, 0][column] for column in test or validation]
    smallest = smallest_detectable(deltas)
    found["smallest_detectable"] = None if smallest is None else round(smallest, 4)
    found["resolved"], found["why"] = _verdict(found, metric)
    return found


def _figures(
    values: Values,
    step: int,
    references: Sequence[str],
    columns: Sequence[int],
    metrics: Iterable[str],
    bootstrap_samples: int,
) -> dict[str, Any]:
    """Means of step 0 and of the chosen step on some of the references, and their paired difference."""
    figures = {}
    for name in metrics:
        before, after = ([values[name, s][column] for column in columns] for s in (0, step))
        figures[name] = {
            "step_0": round(float(np.mean(before)), 4),
            "best": round(float(np.mean(after)), 4),
            **difference(after, before, bootstrap_samples),
        }
    return {"references": [references[column] for column in columns], "figures": figures}


def _warnings(values: Values, step: int, metrics: Mapping[str, Metric], samples: int) -> list[str]:
    told = [entry.alarm(values[name, step], values[name, 0], samples) for name, entry in metrics.items() if entry.alarm]
    return [sentence for sentence in told if sentence]


def _verdict(found: Mapping[str, Any], metric: Metric) -> tuple[bool, str]:
    """Whether the chosen step is better than step 0 for sure, and the sentence that says so."""
    sign = 1 if metric.higher_is_better else -1
    part = reported(found)
    figures = part["figures"][metric.name]
    low, high = sorted(sign * figures[end] for end in ("ci_low", "ci_high"))
    told = (
        f"step {found['best_step']}: {_mean_of(metric)} {figures['best']}, {figures['delta']:+} against step 0 "
        f"[{figures['ci_low']}, {figures['ci_high']}] on {len(part['references'])} "
        f"{'test references' if found['test'] else 'references that it was chosen by'}"
    )
    unseen = f"a true difference below {found['smallest_detectable']} would mostly have been missed"
    if not found["test"]:
        return False, f"{told}; {NO_TEST}"
    if found["overruled"]:
        return False, f"{told}; {BY_A_PERSON}"
    if sign * found["validation"]["figures"][metric.name]["delta"] <= 0:
        return False, f"unresolved: no checkpoint beats step 0 on the validation references; {told}; {unseen}"
    if low > 0:
        return True, f"better than step 0: {told}; the 95 % interval excludes 0"
    if high < 0:
        return False, f"worse than step 0: {told}; the 95 % interval excludes 0"
    return False, f"unresolved: {told}; the 95 % interval includes 0; {unseen}"


def _mean_of(metric: Metric) -> str:
    """What the mean of a metric is called in a sentence."""
    return "mean rank" if metric.name == MEAN_RANK.name else f"mean {metric.name}"
