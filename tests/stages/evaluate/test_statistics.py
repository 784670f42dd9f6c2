"""What is promised of intervals and choices, counted in simulated runs in which the truth is known."""

from typing import Any

import numpy as np
import pytest

from sdlora.stages.evaluate.statistics import (
    Interval,
    _resamples,
    crossed_detectable,
    crossed_interval,
    earliest_within_one_error,
    holm,
    level_interval,
    mean_interval,
    smallest_detectable,
)
from sdlora.stages.evaluate.tables import Table, metrics_rows

RUNS, RESAMPLES, CHECKPOINTS, CORRELATION = 1500, 1000, 12, 0.8
DRAWS = {
    "normal": lambda random, size: random.normal(size=size),
    "skewed": lambda random, size: random.gamma(4.0, size=size) - 4.0,
    "heavy tails": lambda random, size: random.standard_t(5, size=size),
}


def checkpoints(random: np.random.Generator, references: int) -> np.ndarray:
    """(1 + 12, references) values in which nothing is learnt: what a reference is worth is shared by all steps."""
    shared = np.sqrt(CORRELATION) * random.normal(size=(1, references))
    return shared + np.sqrt(1 - CORRELATION) * random.normal(size=(CHECKPOINTS + 1, references))


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 8, 20, 50])
@pytest.mark.parametrize("shape", DRAWS)
def test_intervals_cover_what_they_promise(shape: str, count: int) -> None:
    random = np.random.default_rng(count)
    found = [mean_interval(values, RESAMPLES) for values in DRAWS[shape](random, (RUNS, count))]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.93 <= covered <= 0.97


def test_the_p_value_is_the_intervals_inverse() -> None:
    random = np.random.default_rng(3)
    found = [mean_interval(random.normal(0.5, 1, 12), RESAMPLES) for _ in range(300)]
    apart = [one.low > 0 or one.high < 0 for one in found]
    assert all((one.p <= 0.05) == far for one, far in zip(found, apart, strict=True) if abs(one.p - 0.05) > 0.005)
    assert 0.2 < np.mean(apart) < 0.6


def test_two_groups_of_few_values_do_not_blow_the_interval_up() -> None:
    """SSIM of ten prompts, of which three are hard."""
    found = mean_interval([0.7769, 0.7563, 0.4467, 0.7691, 0.7708, 0.497, 0.4978, 0.7593, 0.7644, 0.771], 2000)
    assert found.low == pytest.approx(0.585, abs=5e-3) and found.high == pytest.approx(0.777, abs=5e-3)


def test_equal_values_give_equal_intervals() -> None:
    values = [1.0, 5.0, 2.0, 8.0, 3.0, 9.0, 4.0, 4.5] * 3
    first = mean_interval(values, 500)
    _resamples.cache_clear()
    assert first == mean_interval(values, 500) != mean_interval(values, 500, seed=1)
    assert mean_interval([2.0], 100) == Interval(2.0, 2.0, 2.0, 1.0)
    assert mean_interval([2.0] * 6, 100) == Interval(2.0, 2.0, 2.0, 0.03125)
    assert mean_interval([-1.0] * 5, 100) == Interval(-1.0, -1.0, 0.0, 0.0625), "five of one sign prove nothing"
    assert mean_interval([0.0] * 6, 100).p == 1.0


def test_the_interval_of_a_level_does_not_reach_to_0() -> None:
    """Five prompts of which all is found, or a rank of 1 on each: 0 is no hypothesis of them."""
    assert level_interval([1.0] * 5, 100) == Interval(1.0, 1.0, 1.0, 0.0625)
    assert level_interval([1.0, 2.0, 3.0], 100) == mean_interval([1.0, 2.0, 3.0], 100)
    table = Table([*"abcde"], {("prompt_recall", 0): [1.0] * 5}, [42])
    (row,) = metrics_rows(table, None, 100)
    assert row[-3:] == ["1.0000"] * 3


def test_few_values_get_students_interval() -> None:
    found = mean_interval([1.0, 2.0, 3.0], 100)
    half = 4.302653 / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    assert found.p == pytest.approx(0.074180, abs=1e-5)


def test_scale_and_shift_move_the_interval_along() -> None:
    values = np.random.default_rng(5).gamma(2, size=9)
    one, other = mean_interval(values, 500), mean_interval(3 * values + 7, 500)
    assert (other.low, other.high) == pytest.approx((3 * one.low + 7, 3 * one.high + 7))


def test_holm_corrects_as_in_the_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_smallest_detectable_difference_is_detected_in_four_of_five_runs() -> None:
    random = np.random.default_rng(7)
    truth = smallest_detectable([-1.0, 1.0] * 10)  # of 20 differences with this spread
    assert truth is not None and smallest_detectable([1.0]) is None
    assert smallest_detectable([-0.5] * 5) is None, "without a spread nobody can tell, and it is not 0"
    spread = np.std([-1.0, 1.0] * 10, ddof=1)
    found = [mean_interval(random.normal(truth, spread, 20), RESAMPLES).low > 0 for _ in range(1000)]
    assert 0.75 <= np.mean(found) <= 0.85


def test_the_earliest_as_good_is_chosen() -> None:
    even = {100: [5.0, 6.0, 7.0], 200: [6.0, 7.0, 8.2], 300: [6.1, 7.2, 8.1]}
    assert earliest_within_one_error(even) == 200, "within one error of 300, where every reference lost one at 100"
    assert earliest_within_one_error({300: [1.0], 100: [1.0], 200: [0.5]}) == 100


def test_a_planted_best_is_found() -> None:
    random = np.random.default_rng(11)
    for references in (5, 10, 20):
        found = []
        for _ in range(400):
            values = checkpoints(random, references)[1:]
            values[8] += 1.0
            found.append(earliest_within_one_error(dict(enumerate(values))) == 8)
        assert np.mean(found) >= 0.9


def crossed(random: np.random.Generator, luck: float, trainings: int, references: int, count: int) -> list[Any]:
    """Tables of versions that are worth the same: references' own values, a training's luck, and the rest."""
    return [
        0.7 * random.normal(size=references)
        + luck * random.normal(size=(trainings, 1))
        + 0.5 * random.normal(size=(trainings, references))
        for _ in range(count)
    ]


@pytest.mark.parametrize("references", [5, 10])
@pytest.mark.parametrize("luck", [0.0, 0.5, 1.5])
def test_three_trainings_cover_the_luck_of_the_training(luck: float, references: int) -> None:
    """Of one version against the base, and of two that are worth the same: hardly ever is one called better."""
    random = np.random.default_rng(int(10 * luck) + references)
    for signs in ((1,), (-1, 1)):
        found = [crossed_interval(crossed(random, luck, 3, references, len(signs)), signs) for _ in range(1000)]
        covered = [interval.low <= 0 <= interval.high for interval in found]
        assert 0.95 <= np.mean(covered) <= 0.985
        assert [interval.p > 0.05 for interval in found] == covered, "a winner where there is none: at most 5 %"
    if luck > 1:  # one training each, tested over references alone, is fooled
        pairs = [crossed(random, luck, 1, references, 2) for _ in range(300)]
        fooled = [mean_interval((b - a)[0].tolist(), 100).p <= 0.05 for a, b in pairs]
        assert np.mean(fooled) > 0.3


@pytest.mark.parametrize("luck", [0.0, 0.5])
def test_a_difference_as_large_as_the_smallest_detectable_is_mostly_found(luck: float) -> None:
    random = np.random.default_rng(1)
    pairs = [crossed(random, luck, 3, 8, 2) for _ in range(600)]
    smallest = float(np.median([crossed_detectable(pair, (-1, 1)) for pair in pairs]))
    found = [crossed_interval([one, other + smallest], (-1, 1)).p <= 0.05 for one, other in pairs]
    assert 0.7 <= np.mean(found) <= 0.9
    assert crossed_detectable([np.full((3, 5), 2.0)] * 2, (-1, 1)) is None


def test_of_a_table_of_equal_values_only_the_sign_counts() -> None:
    assert crossed_interval([np.full((3, 6), 2.0)], (1,)) == Interval(2.0, 2.0, 2.0, 0.03125)
    assert crossed_interval([np.full((3, 5), 2.0)], (1,)) == Interval(2.0, 0.0, 2.0, 0.0625)
