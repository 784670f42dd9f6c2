"""Which checkpoint is best, by a rule that is written beside the answer, and what may be said of it.

The first share of the references chooses (validation), the others report (test): the checkpoint that happens to suit
the references it was chosen by is not called better for that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sdlora.config.evaluate import Evaluate
from sdlora.errors import DataError
from sdlora.stages.evaluate.mean_rank import MEAN_RANK, mean_ranks
from sdlora.stages.evaluate.metric import Metric
from sdlora.stages.evaluate.statistics import earliest_within_one_error, smallest_detectable
from sdlora.stages.evaluate.tables import (
    BETTER,
    BY_HAND,
    UNTESTED,
    WORSE,
    Measured,
    Table,
    Values,
    difference,
    judged,
    reported,
    rounded,
)
from sdlora.stages.sample.parts import LEAST_REFERENCES

NO_TEST = (
    f"there is no independent test, which takes {LEAST_REFERENCES} references for the rule to choose by and "
    f"{LEAST_REFERENCES} others, so it is not called better"
)
BY_A_PERSON = "a person chose it, who may have seen the test's pictures, so it is not called better"


@dataclass(frozen=True)
class Choice:
    """Which checkpoint is shown, and who says so."""

    by_rule: int
    chosen: int | None = None  # by a person
    measured: Measured = field(default_factory=dict)  # what the rule chose by

    @property
    def step(self) -> int:
        """What is shown: a person's choice takes the rule's place."""
        return self.chosen or self.by_rule

    @property
    def steps(self) -> list[int]:
        """The steps that are tested: the choice, what it overruled, and step 0."""
        return sorted({0, self.by_rule, self.step})


def best_step(table: Table, metric: Metric) -> int:
    """The earliest trained step within one standard error of the best."""
    sign = 1 if metric.higher_is_better else -1
    scores = {
        step: [sign * value for value in found]
        for (name, step), found in table.values.items()
        if name == metric.name and step
    }
    return earliest_within_one_error(scores)


def choose(
    validation: Table, metrics: Mapping[str, Metric], choose_by: Sequence[str], chosen: int | None = None
) -> Choice:
    """The rule's checkpoint, and a person's.

    Args:
        validation: The metrics of `choose_by` at every checkpoint.
        metrics: Those metrics, by name.
        choose_by: One metric, or several, whose mean rank chooses.
        chosen: The step that a person chose; None leaves it to the rule.

    Raises:
        DataError: If the person's step is no checkpoint; names those that are.
    """
    steps = [step for step in validation.steps if step]
    if chosen is not None and chosen not in steps:
        raise DataError(f"chosen is {chosen}, but the checkpoints are {', '.join(map(str, steps))}")
    if len(choose_by) > 1:
        validation = replace(validation, values=mean_ranks(validation.values, metrics, choose_by))
        return Choice(best_step(validation, MEAN_RANK), chosen)
    return Choice(best_step(validation, metrics[choose_by[0]]), chosen)


def explain(
    validation: Table, test: Table | None, metrics: Mapping[str, Metric], settings: Evaluate, choice: Choice
) -> dict[str, Any]:
    """What `best.json` holds.

    A person's choice takes the rule's place. Whoever looks at pictures looks at the test's, too: where the two differ
    the test is no independent one, and nothing is called better.

    Args:
        validation: Every step's values on the references that chose.
        test: Those of the choice's steps on the others; None where there are none.
        metrics: What was measured, by name.
        settings: The metric that chose, resamples.
        choice: What was chosen.

    Returns:
        `best_step`, the `rule`, its `verdict` in a word (`tables.verdict_of`), and `why` in a sentence; `overruled`:
        what the rule chose and said, where a person chose otherwise; `validation` and `test` (None where there is
        none), each with its `references`, their `seeds` and a metric's `figures`; `resolved`: whether it is better;
        `smallest_detectable`: the true difference in `choose_by` that would have been found in 80 % of cases, None
        where nobody can tell;
        `bootstrap_samples`, with which other intervals of these values are computed; `warnings`.
    """
    metric = metrics[settings.choose_by[0] if len(settings.choose_by) == 1 else MEAN_RANK.name]
    overruled = None
    if choice.step != choice.by_rule:
        rules = explain(validation, test, metrics, settings, Choice(choice.by_rule))
        overruled = {key: rules[key] for key in ("best_step", "verdict", "why", "resolved")}
    step, reporting, samples = choice.step, test or validation, settings.bootstrap_samples
    found: dict[str, Any] = {
        "best_step": step,
        "chosen": choice.chosen,
        "overruled": overruled,
        "choose_by": metric.name,
        "higher_is_better": {name: entry.higher_is_better for name, entry in metrics.items()},
        "references": [*validation.references, *(test.references if test else [])],
        "bootstrap_samples": samples,
        "validation": _figures(validation, step, metrics, samples),
        "test": _figures(test, step, metrics, samples) if test else None,
        "warnings": _warnings(reporting.values, step, metrics, samples),
    }
    extreme, count = "highest" if metric.higher_is_better else "lowest", len(validation.references)
    part = f"{count} validation references" if test else f"all {count} references"
    found["rule"] = (
        f"earliest of {len(validation.steps) - 1} checkpoints within one standard error of the {extreme} "
        f"{_mean_of(metric)} on {part}"
        + (f" (over {', '.join(settings.choose_by)})" if len(settings.choose_by) > 1 else "")
    )
    deltas = np.subtract(reporting.values[metric.name, step], reporting.values[metric.name, 0])
    smallest = smallest_detectable(deltas.tolist())
    found["smallest_detectable"] = None if smallest is None else rounded(smallest)
    found["verdict"] = judged(found)
    found["resolved"], found["why"] = found["verdict"] == BETTER, _sentence(found, metric)
    return found


def _figures(table: Table, step: int, metrics: Iterable[str], bootstrap_samples: int) -> dict[str, Any]:
    """Means of step 0 and of the chosen step on a part of the references, and their paired difference."""
    figures = {}
    for name in metrics:
        before, after = (table.values[name, s] for s in (0, step))
        figures[name] = {
            "step_0": float(np.mean(before)),
            "best": float(np.mean(after)),
            **difference(after, before, bootstrap_samples),
        }
    return {"references": table.references, "seeds": table.seeds, "figures": figures}


def _warnings(values: Values, step: int, metrics: Mapping[str, Metric], samples: int) -> list[str]:
    told = [entry.alarm(values[name, step], values[name, 0], samples) for name, entry in metrics.items() if entry.alarm]
    return [sentence for sentence in told if sentence]


def _sentence(found: Mapping[str, Any], metric: Metric) -> str:
    """What the verdict is, and what it is made of."""
    verdict, part = found["verdict"], reported(found)
    shown = {key: rounded(part["figures"][metric.name][key]) for key in ("best", "delta", "ci_low", "ci_high")}
    told = (
        f"step {found['best_step']}: {_mean_of(metric)} {shown['best']}, {shown['delta']:+} against step 0 "
        f"[{shown['ci_low']}, {shown['ci_high']}] on {len(part['references'])} "
        f"{'references that it was chosen by' if verdict == UNTESTED else 'test references'}"
    )
    if verdict in (UNTESTED, BY_HAND):
        return f"{told}; {NO_TEST if verdict == UNTESTED else BY_A_PERSON}"
    if verdict in (BETTER, WORSE):
        return f"{verdict} than step 0: {told}; the 95 % interval excludes 0"
    smallest = found["smallest_detectable"]
    unseen = "" if smallest is None else f"; a true difference below {smallest} would mostly have been missed"
    gain = found["validation"]["figures"][metric.name]["delta"]
    if (gain if metric.higher_is_better else -gain) <= 0:
        return f"{verdict}: it does not beat step 0 on the validation references; {told}{unseen}"
    return f"{verdict}: {told}; the 95 % interval includes 0{unseen}"


def _mean_of(metric: Metric) -> str:
    """What the mean of a metric is called in a sentence."""
    return "mean rank" if metric.name == MEAN_RANK.name else f"mean {metric.name}"
