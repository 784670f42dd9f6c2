"""From values per picture to tables with intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

LEAST_REFERENCES = 5  # below, a bootstrap over references says next to nothing: one gives itself as its interval
Values = dict[tuple[str, int], list[float]]  # (metric, step) -> one value a reference


def bootstrap_interval(values: Sequence[float], samples: int, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of the mean (Efron 1979), over references.

    Returns:
        Lower and upper end; a single value gives itself twice.
    """
    data = np.asarray(values, dtype=np.float64)
    index = np.random.default_rng(seed).integers(0, len(data), (samples, len(data)))
    low, high = np.percentile(data[index].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def metrics_rows(values: Values, samples: int) -> list[list[str]]:
    """Rows of `metrics.csv`: step, metric, one column a reference, mean and its interval."""
    rows = []
    for metric, step in sorted(values, key=lambda key: (key[0], key[1])):
        found = values[metric, step]
        numbers = [*found, float(np.mean(found)), *bootstrap_interval(found, samples)]
        rows.append([str(step), metric, *(f"{number:.4f}" for number in numbers)])
    return rows


def metrics_columns(count: int) -> list[str]:
    """Header of `metrics.csv` for `count` references."""
    return ["step", "metric", *(f"image{n}" for n in range(1, count + 1)), "mean", "ci_low", "ci_high"]


def difference(after: Sequence[float], before: Sequence[float], samples: int) -> dict[str, float]:
    """Paired difference of two steps over the same references, with its interval."""
    deltas: NDArray[np.float64] = np.asarray(after) - np.asarray(before)
    low, high = bootstrap_interval(deltas.tolist(), samples)
    return {"delta": round(float(deltas.mean()), 4), "ci_low": round(low, 4), "ci_high": round(high, 4)}


def excludes_zero(found: Mapping[str, float]) -> bool:
    """Whether a difference's interval lies on one side of 0."""
    return found["ci_low"] > 0 or found["ci_high"] < 0


def verdict(found: Mapping[str, float], references: int) -> str:
    """What may be said of a difference, measured on so many references."""
    if references < LEAST_REFERENCES:
        return f"no verdict: {references} of at least {LEAST_REFERENCES} references"
    return f"its 95 % interval {'excludes' if excludes_zero(found) else 'includes'} 0"
