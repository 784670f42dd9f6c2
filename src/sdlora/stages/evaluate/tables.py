"""From values per reference to tables with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdlora.stages.evaluate.statistics import Interval, level_interval, mean_interval

Values = dict[tuple[str, int], list[float]]  # (metric, step) -> one value a reference
Measured = Mapping[str, Mapping[str, float]]  # a picture's file, below `results/<version>` -> its value by each metric
BETTER, WORSE, UNRESOLVED, UNTESTED, BY_HAND = VERDICTS = ("better", "worse", "unresolved", "untested", "by a person")
ONE_TRAINING = "one training each: differences between versions include the luck of the training"


@dataclass(frozen=True)
class Table:
    """What was measured of one part of the references: of each, the mean over its sampling seeds."""

    references: list[str]  # ids, in the order of the values
    values: Values
    seeds: list[int]  # that each was drawn with

    @property
    def steps(self) -> list[int]:
        """Those that have pictures of this part."""
        return sorted({step for _, step in self.values})


def metrics_rows(validation: Table, test: Table | None, samples: int) -> list[list[str]]:
    """Rows of `metrics.csv`: step, metric, one column a reference, the validation's mean and its interval.

    Where there is a test, each mean stands beside the images and the seeds that it is over, and the test's mean and
    interval follow, of step 0 and the steps that were chosen; of other steps all that is the test's is empty.
    """
    rows = []
    for metric, step in sorted(validation.values, key=lambda key: (key[0], key[1])):
        own = validation.values[metric, step]
        row = [str(step), metric, *_cells(own)]
        if test is None:
            rows.append([*row, *_mean(own, samples)])
            continue
        tested = test.values.get((metric, step))
        row += [
            *(_cells(tested) if tested else [""] * len(test.references)),
            *_mean(own, samples),
            _over(1, validation),
        ]
        rows.append(row + ([*_mean(tested, samples), _over(len(own) + 1, test)] if tested else [""] * 4))
    return rows


def _cells(numbers: Sequence[float]) -> list[str]:
    return [written(number) for number in numbers]


def written(number: float) -> str:
    """A measured number as tables have it, from which others compute: four decimals, six digits where it is below 1."""
    return f"{number:.{_decimals(number, 6)}f}"


def rounded(number: float) -> float:
    """A measured number as sentences have it: four decimals, three digits where that leaves fewer."""
    return round(number, _decimals(number, 3))


def _decimals(number: float, digits: int) -> int:
    """How many decimals leave so many significant digits, four at least."""
    return max(4, digits - 1 - math.floor(math.log10(abs(number)))) if 0 < abs(number) < 1 else 4


def _mean(values: Sequence[float], samples: int) -> list[str]:
    interval = level_interval(values, samples)
    return _cells([interval.mean, interval.low, interval.high])


def _over(first: int, table: Table) -> str:
    seeds = " ".join(map(str, table.seeds))
    return f"image{first}-image{first + len(table.references) - 1} seeds {seeds}"


def metrics_columns(validation: int, test: int = 0) -> list[str]:
    """Header of `metrics.csv` for so many references of either part."""
    images = [f"image{n}" for n in range(1, validation + test + 1)]
    shared = ["step", "metric", *images, "mean", "ci_low", "ci_high"]
    return [*shared, "mean_over", "test_mean", "test_ci_low", "test_ci_high", "test_over"] if test else shared


def difference(after: Sequence[float], before: Sequence[float], samples: int) -> dict[str, float]:
    """Paired difference of two steps over the same references, with its interval and p-value."""
    return told(mean_interval((np.asarray(after) - np.asarray(before)).tolist(), samples))


def told(found: Interval) -> dict[str, float]:
    """An interval of a difference, as `best.json` has it: not rounded, for verdicts are made of it."""
    return {"delta": found.mean, "ci_low": found.low, "ci_high": found.high, "p": found.p}


def verdict_of(best: Mapping[str, Any]) -> str:
    """What a `best.json` says of its step against step 0, in a word; one of before says all that the word follows from.

    Returns:
        `untested`, where too few references are left to test on; `by a person`, who may have seen the test's pictures;
        else `better`, `worse` or `unresolved`.
    """
    return str(best["verdict"]) if "verdict" in best else judged(best)


def judged(best: Mapping[str, Any]) -> str:
    """The verdict that follows from a `best.json`'s figures in what it was chosen by."""
    if not best["test"]:
        return UNTESTED
    if best.get("overruled"):
        return BY_HAND
    validation, test = (best[part]["figures"][best["choose_by"]] for part in ("validation", "test"))
    sign = 1 if best["higher_is_better"][best["choose_by"]] else -1
    low, high = sorted(sign * test[end] for end in ("ci_low", "ci_high"))
    if high < 0:
        return WORSE
    return BETTER if low > 0 and sign * validation["delta"] > 0 else UNRESOLVED


def is_tested(best: Mapping[str, Any]) -> bool:
    """Whether a `best.json`'s step was chosen without the references that its figures are of."""
    return verdict_of(best) not in (UNTESTED, BY_HAND)


def rule_step(best: Mapping[str, Any]) -> int:
    """What the rule of a `best.json` chose, also where a person overruled it."""
    return int((best.get("overruled") or best)["best_step"])


def reported(best: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a `best.json` whose figures are shown: the test, or where there is none, what was chosen by."""
    found: Mapping[str, Any] = best["test"] or best["validation"]
    return found
