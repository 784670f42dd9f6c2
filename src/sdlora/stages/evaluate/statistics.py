"""What may be said of a mean over references: intervals, corrections, the rule of choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

LEAST_RESAMPLED = 20
LEVEL, POWER = 0.05, 0.80
Floats = NDArray[np.float64]
Part = tuple[float, float]  # of a variance, and its degrees of freedom


@dataclass(frozen=True)
class Interval:
    """A mean, its 95 % interval, and the p-value of its being 0; both tell the same, one being the other's inverse."""

    mean: float
    low: float
    high: float
    p: float


@cache
def _resamples(count: int, samples: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (samples, count))


def mean_interval(values: Sequence[float], samples: int, seed: int = 0) -> Interval:
    """Student's t below 20 values; from there the studentised bootstrap (Efron and Tibshirani 1993, section 12.5).

    Chosen by coverage in simulation, where the percentile bootstrap and BCa cover 87 % with 8 values and 95 % is
    promised. The studentised bootstrap covers as much as t does, but its interval explodes where few values form two
    groups, as SSIM over ten prompts does: resamples from one group have next to no spread to divide by.

    Args:
        values: One a reference. A reference's sampling seeds are averaged before: as each has the same number of
            them, resampling references is the cluster bootstrap by prompt.
        samples: Resamples.
        seed: Of the resampling; equal values give equal intervals.

    Returns:
        The interval; of equal values see `_of_equal`.
    """
    data: Floats = np.asarray(values, dtype=np.float64)
    count, mean = len(data), float(data.mean())
    error = _standard_error(data)
    if _is_flat(data, mean):
        return _of_equal(mean, count)
    if count < LEAST_RESAMPLED:
        half = float(stdtrit(count - 1, 1 - LEVEL / 2)) * error
        return Interval(mean, mean - half, mean + half, float(2 * stdtr(count - 1, -abs(mean) / error)))
    drawn = data[_resamples(count, samples, seed)]
    spread = drawn.std(axis=1, ddof=1) / np.sqrt(count)
    whole = spread > 1e-9 * error  # a resample of one value, again and again, has no spread to divide by
    scaled = (drawn.mean(axis=1)[whole] - mean) / spread[whole]
    below, above = np.percentile(scaled, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)])
    tail = min((scaled >= mean / error).sum(), (scaled <= mean / error).sum())
    p = min(1.0, 2 * float(tail + 1) / (len(scaled) + 1))
    return Interval(mean, mean - float(above) * error, mean - float(below) * error, p)


def level_interval(values: Sequence[float], samples: int) -> Interval:
    """The interval of a mean that is no difference, as tables and curves show it.

    As `mean_interval`, but of equal values it has no width: 0 means nothing to a level, such as a rank or a share.
    """
    found = mean_interval(values, samples)
    return replace(found, low=found.mean, high=found.mean) if _is_flat(np.asarray(values), found.mean) else found


def _is_flat(data: Floats, mean: float) -> bool:
    """Whether values are equal but for rounding."""
    return _standard_error(data) <= 1e-12 * max(1.0, abs(mean))


def _of_equal(mean: float, count: int) -> Interval:
    """The interval of equal values, as ranks are: without a spread, only that all have one sign is evidence.

    p is the sign test's (Arbuthnot 1710), 0.0625 for five values. Where that is too little the interval reaches to 0;
    a single value is its own.
    """
    p = 1.0 if mean == 0 else min(1.0, 2.0 ** (1 - count))
    if p <= LEVEL or count == 1:
        return Interval(mean, mean, mean, p)
    return Interval(mean, min(mean, 0.0), max(mean, 0.0), p)


def crossed_interval(tables: Sequence[Floats], signs: Sequence[int]) -> Interval:
    """The interval of a sum of means over trainings and references: the luck of a training counts.

    Of each table (trainings x references) the share of a training's luck in the variance is estimated, as in a two-way
    random-effects model (Searle, Casella and McCulloch 1992, section 4.3), and added to that of the references, on
    which the tables are paired. Student's t is the mean of both parts' own, weighted by their variances (Cochran and
    Cox 1957, section 4.14). In 20,000 simulated runs of three trainings the interval of two equal versions leaves out
    0 in 2.1 to 4.1 %, and that of one against the base in 2.8 to 5.4 %; with Satterthwaite's degrees of freedom in up
    to 5.3 and 8.6 %. Resampling trainings, then references, does so in up to 25 %.

    Args:
        tables: (S, R) each, over the same R references, at least two; a table of one training has no luck to estimate.
        signs: With which each table's mean counts: (-1, 1) for the second less the first.
    """
    mean, parts = _crossed(tables, signs)
    error = _error(parts)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return _of_equal(mean, tables[0].shape[1])
    half = _quantile(parts, 1 - LEVEL / 2) * error
    return Interval(mean, mean - half, mean + half, _two_sided(parts, abs(mean) / error))


def crossed_detectable(tables: Sequence[Floats], signs: Sequence[int]) -> float | None:
    """The smallest true sum that `crossed_interval` finds in 80 % of cases, as `smallest_detectable` has it."""
    _, parts = _crossed(tables, signs)
    error = _error(parts)
    return (_quantile(parts, 1 - LEVEL / 2) + _quantile(parts, POWER)) * error if error else None


def _crossed(tables: Sequence[Floats], signs: Sequence[int]) -> tuple[float, list[Part]]:
    """A sum of means, and of its variance the references' part and the trainings' luck."""
    count = tables[0].shape[1]
    paired: Floats = np.sum([sign * table.mean(axis=0) for sign, table in zip(signs, tables, strict=True)], axis=0)
    lucks = []
    for table in tables:
        trainings = len(table)
        if trainings > 1:
            rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            error = float(np.square(rest).sum()) / ((trainings - 1) * (count - 1))
            luck = max(0.0, float(table.mean(axis=1).var(ddof=1)) - error / count)
            lucks.append((luck / trainings, trainings - 1))
    luck = sum(part for part, _ in lucks)  # several versions' luck as one part: Satterthwaite (1946)
    freedom = luck**2 / sum(part**2 / free for part, free in lucks) if luck else 1.0
    return float(paired.mean()), [(float(paired.var(ddof=1)) / count, count - 1), (luck, freedom)]


def _error(parts: Sequence[Part]) -> float:
    return float(np.sqrt(sum(part for part, _ in parts)))


def _quantile(parts: Sequence[Part], probability: float) -> float:
    """Student's t of a variance of several parts, by Cochran and Cox."""
    return float(sum(part * stdtrit(freedom, probability) for part, freedom in parts) / sum(part for part, _ in parts))


def _two_sided(parts: Sequence[Part], t: float) -> float:
    """The p of which `_quantile` is the inverse: it lies between those of each part's degrees of freedom."""
    found = [float(2 * stdtr(freedom, -t)) for part, freedom in parts if part]
    low, high = min(found), max(found)
    if high - low <= 1e-12 * high:
        return high
    return float(brentq(lambda p: _quantile(parts, p / 2) + t, low, high, xtol=1e-9 * high))


def _standard_error(data: Floats) -> float:
    return float(data.std(ddof=1) / np.sqrt(len(data))) if len(data) > 1 else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): p-values of one family, to be held against 0.05 each.

    Args:
        p_values: Uncorrected, in any order.

    Returns:
        The corrected ones, in the same order, at most 1.
    """
    corrected, reached = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = reached
    return corrected


def smallest_detectable(deltas: Sequence[float]) -> float | None:
    """The smallest true difference that a paired design of this size and spread finds in 80 % of cases.

    (t(0.975, n - 1) + t(0.8, n - 1)) * s / sqrt(n), with s the standard deviation of the n paired differences
    (Lachin 1981, doi:10.1016/0197-2456(81)90001-5, with t in place of normal quantiles).

    Returns:
        In the metric's unit; None for a single reference, and for equal differences: their spread says nothing.
    """
    data: Floats = np.asarray(deltas, dtype=np.float64)
    if _is_flat(data, float(data.mean())):
        return None
    freedom = len(data) - 1
    return float(stdtrit(freedom, 1 - LEVEL / 2) + stdtrit(freedom, POWER)) * _standard_error(data)


def earliest_within_one_error(scores: Mapping[int, Sequence[float]]) -> int:
    """The earliest step that is within one standard error of the best (Breiman et al. 1984, section 3.4.3).

    The error is that of the paired difference to the best step. That of the best mean itself, which the rule has in
    the book, holds the spread between references, which all steps share: in simulation it finds a planted best less
    often (85 % against 96 % with 5 references and a gain of one such spread) and gives away more.

    Args:
        scores: Step -> one value a reference, higher is better.
    """
    means = {step: float(np.mean(values)) for step, values in scores.items()}
    best = max(sorted(means), key=lambda step: means[step])
    for step in sorted(scores):
        lost: Floats = np.asarray(scores[best], dtype=np.float64) - np.asarray(scores[step], dtype=np.float64)
        if lost.mean() <= _standard_error(lost):
            return step
    return best
