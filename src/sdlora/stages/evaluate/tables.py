"""From values per picture to tables with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdlora.stages.evaluate.statistics import Interval, mean_interval

Values = dict[tuple[str, int], list[float]]  # (metric, step) -> one value a reference
ONE_TRAINING = "one training each: differences between versions include the luck of the training"


def metrics_rows(values: Values, samples: int) -> list[list[str]]:
    """Rows of `metrics.csv`: step, metric, one column a reference, mean and its interval."""
    rows = []
    for metric, step in sorted(values, key=lambda key: (key[0], key[1])):
        found = values[metric, step]
        interval = mean_interval(found, samples)
        numbers = [*found, interval.mean, interval.low, interval.high]
        rows.append([str(step), metric, *(f"{number:.4f}" for number in numbers)])
    return rows


def metrics_columns(count: int) -> list[str]:
    """Header of `metrics.csv` for `count` references."""
    return ["step", "metric", *(f"image{n}" for n in range(1, count + 1)), "mean", "ci_low", "ci_high"]


def difference(after: Sequence[float], before: Sequence[float], samples: int) -> dict[str, float]:
    """Paired difference of two steps over the same references, with its interval and p-value."""
    return told(mean_interval((np.asarray(after) - np.asarray(before)).tolist(), samples))


def told(found: Interval) -> dict[str, float]:
    """An interval of a difference, as tables and `best.json` have it."""
    return {
        "delta": round(found.mean, 4),
        "ci_low": round(found.low, 4),
        "ci_high": round(found.high, 4),
        "p": round(found.p, 4),
    }


def is_tested(best: Mapping[str, Any]) -> bool:
    """Whether a `best.json`'s step was chosen without the references that its figures are of."""
    return bool(best["test"]) and not best.get("overruled")


def rule_step(best: Mapping[str, Any]) -> int:
    """What the rule of a `best.json` chose, also where a person overruled it."""
    return int((best.get("overruled") or best)["best_step"])


def reported(best: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a `best.json` whose figures are shown: the test, or where there is none, what was chosen by."""
    found: Mapping[str, Any] = best["test"] or best["validation"]
    return found
