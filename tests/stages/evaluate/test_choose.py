"""The choice of a checkpoint and what is claimed of it, counted where the truth is known."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chosen import BY_PSNR, EFFNET, METRICS, PSNR, explained, parts

from sdlora import records
from sdlora.config.evaluate import Evaluate
from sdlora.errors import DataError
from sdlora.stages.evaluate import statistics
from sdlora.stages.evaluate.choose import Choice, best_step, choose, explain
from sdlora.stages.evaluate.compare import compare
from sdlora.stages.evaluate.mean_rank import mean_ranks
from sdlora.stages.evaluate.statistics import mean_interval
from sdlora.stages.evaluate.tables import (
    Table,
    Values,
    is_tested,
    metrics_columns,
    metrics_rows,
    rounded,
    rule_step,
    verdict_of,
    written,
)
from sdlora.stages.sample.parts import split

CHECKPOINTS, CORRELATION = 12, 0.8


def simulated(random: np.random.Generator, references: int) -> Values:
    """Step 0 and 12 checkpoints that learnt nothing: what a reference is worth is shared by all steps."""
    shared = random.normal(size=references)
    steps = np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * random.normal(size=(CHECKPOINTS + 1, references))
    return {("psnr_db", 100 * number): values.tolist() for number, values in enumerate(steps)}


def correlated_gains(random: np.random.Generator, references: int) -> Values:
    """The same, but it is gains over step 0 that are correlated by 0.8: what the LoRA does is shared by checkpoints."""
    values = simulated(random, references)
    values["psnr_db", 0] = [0.0] * references
    return values


def with_seeds(random: np.random.Generator, references: int, seeds: int, gain: float = 0.0) -> tuple[Table, Table]:
    """Both parts where a picture's seed is half of its variance; the test averages so many seeds, validation has one.

    Args:
        random: Where values come from.
        references: Of both parts together.
        seeds: Of each test reference.
        gain: What step 900 is worth above the others, in standard deviations of a picture's value.
    """
    half, count = references // 2, CHECKPOINTS + 1
    pictures = {key: np.sqrt(0.5) * np.asarray(found) for key, found in simulated(random, references).items()}
    noise = np.sqrt(0.5) * random.normal(size=(seeds, count, references))
    tables = []
    for part, of_seeds in ((slice(half), noise[:1]), (slice(half, None), noise)):
        luck = of_seeds.mean(axis=0)
        values = {
            key: (found + luck[number] + (gain if key[1] == 900 else 0))[part].tolist()
            for number, (key, found) in enumerate(pictures.items())
        }
        tables.append(Table([f"r{number:02}" for number in range(references)][part], values, [*range(len(of_seeds))]))
    return tables[0], tables[1]


def called_better(tables: Sequence[tuple[Table, Table]]) -> float:
    """How often, of some runs, a checkpoint is called better than step 0."""
    metrics = {"psnr_db": PSNR}
    found = [
        explain(validation, test, metrics, BY_PSNR, choose(validation, metrics, ("psnr_db",)))["resolved"]
        for validation, test in tables
    ]
    return float(np.mean(found))


@pytest.mark.slow
def test_four_seeds_find_what_one_misses_and_are_fooled_no_more() -> None:
    def share(seeds: int, gain: float) -> float:
        random = np.random.default_rng(seeds)
        return called_better([with_seeds(random, 10, seeds, gain) for _ in range(600)])

    assert share(4, 1.5) > share(1, 1.5) + 0.2
    assert max(share(1, 0.0), share(4, 0.0)) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_two_ranks_are_hardly_ever_fooled(alike: float) -> None:
    """On test references a mean rank is among two steps; the metrics agree by chance, or always."""
    random, fooled = np.random.default_rng(8), []
    settings = Evaluate(metrics=(*METRICS,), choose_by=(*METRICS,))
    for _ in range(600):
        values = simulated(random, 10)
        other = simulated(random, 10)
        for (_, step), found in [*values.items()]:
            distance = -np.sqrt(1 - alike) * np.asarray(other["psnr_db", step]) - np.sqrt(alike) * np.asarray(found)
            values["effnet_lite0_distance", step] = distance.tolist()
        fooled.append(bool(explained(values, settings)["resolved"]))
    assert np.mean(fooled) <= 0.05


@pytest.mark.parametrize("nothing_learnt", [simulated, correlated_gains])
def test_nothing_learnt_is_hardly_ever_called_better(
    nothing_learnt: Callable[[np.random.Generator, int], Values],
) -> None:
    random = np.random.default_rng(16)
    runs = [nothing_learnt(random, 10) for _ in range(600)]
    assert np.mean([bool(explained(values)["resolved"]) for values in runs]) <= 0.05
    # what it was: the best of all, tested on the references it was chosen by
    fooled = 0
    for values in runs:
        best = max((step for _, step in values if step), key=lambda step: np.mean(values["psnr_db", step]))
        deltas = np.subtract(values["psnr_db", best], values["psnr_db", 0])
        fooled += mean_interval(deltas.tolist(), 1000).low > 0
    assert fooled / len(runs) > 0.05, "otherwise this simulation shows nothing"


@pytest.mark.parametrize("references", [10, 20, 50])
def test_a_planted_best_is_found_and_called_better(references: int) -> None:
    random, found, called = np.random.default_rng(references), [], []
    for _ in range(200):
        values = simulated(random, references)
        values["psnr_db", 900] = [value + 1.5 for value in values["psnr_db", 900]]
        best = explained(values)
        found.append(best["best_step"] == 900)
        called.append(best["resolved"])
    assert np.mean(found) >= 0.9
    assert np.mean(called) >= 0.9


def test_what_lies_below_the_smallest_detectable_is_left_unresolved_and_says_so() -> None:
    random, missed = np.random.default_rng(2), []
    for _ in range(100):
        values = simulated(random, 10)
        for step in range(100, 1300, 100):
            values["psnr_db", step] = [value + 0.2 for value in values["psnr_db", step]]
        best = explained(values)
        if not best["resolved"]:
            missed.append(best)
    assert len(missed) >= 60
    assert all(float(str(best["smallest_detectable"])) > 0.2 for best in missed)
    assert all(str(best["why"]).startswith(("unresolved", "worse")) for best in missed)


def test_the_test_references_do_not_choose() -> None:
    random = np.random.default_rng(4)
    values = simulated(random, 10)
    step = explained(values)["best_step"]
    for name in values:
        values[name][5:] = random.normal(size=5).tolist()
    assert explained(values)["best_step"] == step


def test_references_are_split_once() -> None:
    assert split(range(10), 0.5) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    assert split(range(20), 0.3) == ([*range(6)], [*range(6, 20)])
    assert split(range(9), 0.5) == ([*range(9)], []) and split(range(10), 0.4) == ([*range(10)], [])
    best = explained(simulated(np.random.default_rng(0), 10))
    assert best["validation"]["references"] == ["r00", "r01", "r02", "r03", "r04"]  # type: ignore[index]
    assert best["test"]["references"] == ["r05", "r06", "r07", "r08", "r09"]  # type: ignore[index]


def plain(**steps: list[float]) -> Values:
    return {("psnr_db", int(step[1:])): values for step, values in steps.items()}


@pytest.mark.parametrize(
    ("after", "start", "resolved"),
    [
        ([9.0] * 5 + [9.1, 9.2, 9.1, 9.3, 9.2], "better than step 0: step 100: mean psnr_db 9.18, +1.18 against", True),
        ([9.0] * 5 + [6.9, 6.8, 6.9, 6.7, 6.8], "worse than step 0: step 100", False),
        ([7.0] * 5 + [6.9, 6.8, 6.9, 6.7, 6.8], "worse than step 0: step 100", False),
        ([9.0] * 5 + [7.0, 9.0, 8.5, 7.5, 8.1], "unresolved: step 100", False),
        ([7.0] * 5 + [9.1, 9.2, 9.1, 9.3, 9.2], "unresolved: it does not beat step 0 on the validation", False),
    ],
)
def test_what_is_said(after: list[float], start: str, resolved: bool) -> None:
    best = explained(plain(_0=[8.0] * 10, _100=after))
    assert str(best["why"]).startswith(start) and best["resolved"] is resolved
    assert best["verdict"] == start.split()[0].rstrip(":") == verdict_of({**best, "why": "in other words"})
    assert best["verdict"] == verdict_of({key: value for key, value in best.items() if key != "verdict"}), "as before"
    assert "on 5 test references" in str(best["why"])
    assert best["rule"] == (
        "earliest of 1 checkpoints within one standard error of the highest mean psnr_db on 5 validation references"
    )
    unresolved = str(best["why"]).startswith("unresolved")
    assert (f"below {best['smallest_detectable']} would mostly have been missed" in str(best["why"])) is unresolved


def test_what_an_earlier_checkpoint_lacks_is_not_said_of_a_later_one() -> None:
    """The earliest within one error of the best may lie below step 0, while the best itself does not."""
    later = [9.5, 7.5, 8.0, 9.0, 7.8]
    best = explained(plain(_0=[8.0, 8.2, 8.1, 8.0, 8.2] * 2, _100=[8.0, 8.1, 8.0, 8.0, 8.1] * 2, _200=later * 2))
    assert best["best_step"] == 100 and np.mean(later) > 8.1
    assert str(best["why"]).startswith("unresolved: it does not beat step 0 on the validation references; step 100:")


def test_equal_differences_do_not_say_how_much_would_have_been_missed() -> None:
    best = explained(plain(_0=[8.0] * 10, _100=[8.5] * 10))
    assert best["smallest_detectable"] is None
    assert str(best["why"]).startswith("unresolved: step 100") and str(best["why"]).endswith("includes 0")


def test_what_four_decimals_do_not_show_is_found(tmp_path: Path) -> None:
    """Losses of 0.1 that fell by 0.00004 on every reference."""
    gains = [3.9e-5, 4.1e-5, 4.0e-5, 4.2e-5, 3.8e-5] * 2
    loss = replace(EFFNET, name="validation_loss")
    values: Values = {("validation_loss", 0): [0.1 + n / 1000 for n in range(10)]}
    values["validation_loss", 100] = np.subtract(values["validation_loss", 0], gains).tolist()
    validation, test = parts(values)
    settings = Evaluate(metrics=("validation_loss",), choose_by="validation_loss", bootstrap_samples=100)
    best = explain(validation, test, {loss.name: loss}, settings, Choice(100))
    assert best["resolved"] and "mean validation_loss 0.107, -4e-05 against step 0 [-4.2e-05, -3.8e-05]" in best["why"]
    records.write_json(tmp_path / "one/best.json", best)
    columns = metrics_columns(len(validation.references), len(test.references) if test else 0)
    records.write_csv(tmp_path / "one/metrics.csv", columns, metrics_rows(validation, test, 100))
    compare(tmp_path / "one", tmp_path / "base", 100, tmp_path / "table.csv")
    (row,) = records.read_csv(tmp_path / "table.csv")
    assert row["better"] == "one" and float(row["delta"]) == pytest.approx(4e-5, rel=0.02)
    assert (row["mean_one"], row["mean_other"]) == ("0.106960", "0.107000")


@pytest.mark.parametrize(("number", "text", "short"), [
    (13.071449, "13.0714", 13.0714), (1.0, "1.0000", 1.0), (0.0, "0.0000", 0.0), (-0.53124567, "-0.531246", -0.5312),
    (0.0123456, "0.0123456", 0.0123), (-4.1234567e-05, "-0.0000412346", -4.12e-05),
])  # fmt: skip
def test_a_number_keeps_enough_digits(number: float, text: str, short: float) -> None:
    assert (written(number), rounded(number)) == (text, short)
    assert written(float("nan")) == "nan"


@pytest.mark.parametrize("count", [1, 5, 9])
def test_without_an_independent_test_nothing_is_better(count: int) -> None:
    best = explained(plain(_0=[8.0] * count, _100=[9.0 + n / 100 for n in range(count)]))
    assert best["test"] is None and not best["resolved"] and best["verdict"] == "untested"
    assert "there is no independent test" in str(best["why"]) and "not called better" in str(best["why"])


def test_the_choice_follows_the_metric() -> None:
    values: Values = {("psnr_db", 0): [9.0], ("psnr_db", 100): [5.0], ("psnr_db", 200): [7.0], ("psnr_db", 300): [7.0]}
    values |= {("effnet_lite0_distance", step): [v] for step, v in ((0, 0.9), (100, 0.5), (200, 0.7), (300, 0.6))}
    table = Table(["r"], values, [42])
    assert best_step(table, PSNR) == 200, "the earliest of equals; step 0 is no checkpoint"
    assert best_step(table, EFFNET) == 100, "the lowest distance"
    by_distance = Evaluate(metrics=("psnr_db", "effnet_lite0_distance"), choose_by="effnet_lite0_distance")
    assert "the lowest mean effnet_lite0_distance on all 1 references" in str(explained(values, by_distance)["rule"])


def test_equal_values_say_equal_things() -> None:
    """Of forty references a part's interval is a bootstrap's, whose resamples are remembered in a process."""
    values = simulated(np.random.default_rng(9), 40)
    first = explained(values)
    statistics._resamples.cache_clear()
    assert explained(values) == first


def test_several_metrics_choose_by_their_mean_rank() -> None:
    """Step 100 is best by PSNR, step 300 by the distance; step 200 is second by both.

    On each reference it is: of equal ranks, those of six references are the fewest that prove anything.
    """
    spread = [n / 100 for n in range(12)]
    values: Values = {
        (name, step): [mean + part for part in spread]
        for name, means in {
            "psnr_db": {0: 5.0, 100: 9.0, 200: 8.9, 300: 6.0},
            "effnet_lite0_distance": {0: 0.9, 100: 0.8, 200: 0.31, 300: 0.3},
        }.items()
        for step, mean in means.items()
    }
    settings = Evaluate(metrics=(*METRICS,), choose_by=(*METRICS,))
    ranks = mean_ranks(values, METRICS, settings.choose_by)
    assert {step: set(found) for (_, step), found in ranks.items()} == {0: {4.0}, 100: {2.0}, 200: {2.0}, 300: {2.0}}
    values["effnet_lite0_distance", 100] = values["effnet_lite0_distance", 0]
    ranks = mean_ranks(values, METRICS, settings.choose_by)
    assert set(ranks["mean_rank", 0]) == {3.75} and set(ranks["mean_rank", 100]) == {2.25}, "ties share their ranks"
    best: Any = explained(values, settings)
    assert best["best_step"] == 200 and best["choose_by"] == "mean_rank" and best["resolved"]
    assert best["why"].startswith("better than step 0: step 200: mean rank ") and "mean mean" not in best["rule"]
    assert best["rule"].endswith("(over psnr_db, effnet_lite0_distance)")
    assert {"mean_rank", *METRICS} == best["test"]["figures"].keys()
    assert Evaluate().model_dump()["choose_by"] == "effnet_lite0_distance", "as before"
    assert settings.model_dump()["choose_by"] == ("psnr_db", "effnet_lite0_distance")
    assert Evaluate.model_validate_json(settings.model_dump_json()) == settings
    assert Evaluate.model_validate_json(BY_PSNR.model_dump_json()) == BY_PSNR


def test_a_person_overrules_the_rule_and_both_are_told() -> None:
    values = plain(_0=[8.0] * 10, _100=[9.0 + n / 50 for n in range(10)], _200=[8.5 + n / 50 for n in range(10)])
    by_rule = explained(values)
    assert by_rule["best_step"] == 100 and by_rule["resolved"] and by_rule["overruled"] is None
    by_hand = explained(values, chosen=200)
    assert by_hand["best_step"] == 200 and not by_hand["resolved"] and by_hand["verdict"] == "by a person"
    assert by_hand["overruled"] == {key: by_rule[key] for key in ("best_step", "verdict", "why", "resolved")}
    assert str(by_hand["why"]).startswith("step 200") and "a person chose it" in str(by_hand["why"])
    assert (rule_step(by_hand), is_tested(by_hand), is_tested(by_rule)) == (100, False, True)
    both = explained(values, chosen=100)
    assert both["resolved"] and both["overruled"] is None, "the rule says the same, without looking"
    with pytest.raises(DataError, match="chosen is 150, but the checkpoints are 100, 200"):
        explained(values, chosen=150)
