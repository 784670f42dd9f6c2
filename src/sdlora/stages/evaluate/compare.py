"""Two versions at their chosen checkpoints, picture by picture; or a version and the base without its LoRA."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdlora import records
from sdlora.errors import DataError
from sdlora.stages.evaluate.choose import BY_A_PERSON, NO_TEST
from sdlora.stages.evaluate.mean_rank import NAME as MEAN_RANK
from sdlora.stages.evaluate.statistics import LEVEL, Floats, crossed_interval, holm
from sdlora.stages.evaluate.tables import (
    BY_HAND,
    ONE_TRAINING,
    UNTESTED,
    difference,
    reported,
    rounded,
    told,
    verdict_of,
    written,
)

BASE = "base"  # in the place of a version: the other one at step 0
COLUMNS = ("metric", "one", "step_one", "mean_one", "other", "step_other", "mean_other", "delta", "ci_low", "ci_high",
           "p", "better", "note")  # fmt: skip
EACH_ONCE = "one training each"  # of a winner that the next trainings need not confirm
SEVERAL = "several trainings each: the interval holds the luck of the training"
ONE_LORA = "one training: another of the same settings may differ"


@dataclass(frozen=True)
class Measured:
    """A version's trainings, each at its chosen step, on the references that are reported."""

    steps: list[int]
    references: list[str]
    fitted: str  # how and to which size they were padded; empty: not recorded
    seeds: list[int]  # with which each was drawn
    doubt: str  # why nothing may be called better; empty where it may
    higher_is_better: dict[str, bool]
    values: dict[str, Floats]  # metric -> (trainings, references)


def measured(results: Sequence[Path], step: int | None = None) -> Measured:
    """What evaluating each training has found, at its chosen step or at a given one.

    Raises:
        DataError: If one is not measured, or not on the references of the others.
    """
    found = [_one(result, step) for result in results]
    first = found[0]
    for result, one in zip(results, found, strict=True):
        if one.references != first.references:
            raise DataError(f"{result.name} was measured on other references than {results[0].name}")
    doubt = next((one.doubt for one in found if one.doubt), "")
    shared = [metric for metric in first.values if all(metric in one.values for one in found)]
    values = {metric: np.concatenate([one.values[metric] for one in found]) for metric in shared}
    return Measured(
        [one.steps[0] for one in found],
        first.references,
        first.fitted,
        first.seeds,
        doubt,
        first.higher_is_better,
        values,
    )


def _one(result: Path, step: int | None) -> Measured:
    if not (result / "best.json").exists():
        raise DataError(f"{result.name} is not measured yet: say `snakemake {result}/metrics.csv`")
    best: dict[str, Any] = records.read_json(result / "best.json")
    part, wanted = reported(best), best["best_step"] if step is None else step
    shown = part["references"]
    columns = [f"image{number}" for number, name in enumerate(best["references"], 1) if name in shown]
    rows = [row for row in records.read_csv(result / "metrics.csv") if int(row["step"]) == wanted]
    values = {
        row["metric"]: np.array([[float(row[column]) for column in columns]])
        for row in rows
        if row["metric"] != MEAN_RANK
    }
    doubt = {UNTESTED: NO_TEST, BY_HAND: BY_A_PERSON}.get(verdict_of(best), "")
    return Measured([wanted], shown, best.get("fitted", ""), part["seeds"], doubt, best["higher_is_better"], values)


def against(first: Measured, second: Measured, metric: str, bootstrap_samples: int) -> dict[str, float]:
    """The second less the first, with its interval: over trainings and references where there are several trainings."""
    tables = [first.values[metric], second.values[metric]]
    if max(map(len, tables)) == 1 or len(first.references) < 2:
        return difference(tables[1].mean(axis=0).tolist(), tables[0].mean(axis=0).tolist(), bootstrap_samples)
    return told(crossed_interval(tables, (-1, 1)))


def compare(
    one: Path,
    other: Path,
    bootstrap_samples: int,
    out: Path,
    trainings: Mapping[str, Sequence[Path]] | None = None,
) -> list[Path]:
    """Write one row a metric: both means, and the paired difference (other - one) with its 95 % interval.

    Measured on the test references, by which neither was chosen; without them, or where a person chose one of the two
    over the rule, no version is called better. `p` is corrected over the metrics (Holm). Mean ranks are left out: they
    are ranks among a version's own checkpoints. Where both versions were trained several times, the luck of a training
    is in the interval; otherwise the first training of each is compared, and the winner and the note say so.

    Args:
        one: `results/<version>`, or `results/base` for the other one's base.
        other: The version it is compared with, measured on the same references; or the base.
        bootstrap_samples: Resamples of the interval.
        out: The CSV file to write.
        trainings: The folders of all trainings of a version, its own first, by its name.

    Raises:
        DataError: If one is not measured, or the two were measured on different references, also by size or padding, or
            drawn with other seeds, or by no common metric.
    """
    if one.name == other.name:
        raise DataError(f"{one.name} is compared with itself; name another version, or {BASE}")
    folders = {side.name: [*(trainings or {}).get(side.name, [side])] for side in (one, other) if side.name != BASE}
    several = all(len(found) > 1 for found in folders.values())
    if not several:
        folders = {name: found[:1] for name, found in folders.items()}
    first, second = _side(one.name, other.name, folders), _side(other.name, one.name, folders)
    _check_alike(one.name, first, other.name, second)
    doubt = first.doubt or second.doubt
    note = doubt or (SEVERAL if several else ONE_LORA if BASE in (one.name, other.name) else ONE_TRAINING)
    shared = [metric for metric in first.values if metric in second.values]
    if not shared:
        has = [f"{name} has {', '.join(side.values)}" for name, side in ((one.name, first), (other.name, second))]
        raise DataError(f"no metric measures both: {'; '.join(has)}; give their evaluate.metrics one in common")
    found = [against(first, second, metric, bootstrap_samples) for metric in shared]
    rows = []
    for metric, figures, p in zip(shared, found, holm([figures["p"] for figures in found]), strict=True):
        better = "neither for sure"
        if not doubt and p <= LEVEL:
            better = other.name if (figures["delta"] > 0) == first.higher_is_better[metric] else one.name
            better += "" if several or BASE in (one.name, other.name) else f" ({EACH_ONCE})"
        rows.append(
            [metric, one.name, _steps(first), written(first.values[metric].mean()), other.name, _steps(second),
             written(second.values[metric].mean()), *(rounded(figures[key]) for key in ("delta", "ci_low", "ci_high")),
             written(p), better, note]
        )  # fmt: skip
    records.write_csv(out, COLUMNS, rows)
    return [out]


def _check_alike(one: str, first: Measured, other: str, second: Measured) -> None:
    """Refuse sides that were measured against other pictures, or with other noise."""
    if first.references != second.references:
        raise DataError(f"{one} and {other} were measured on different references; they cannot be compared")
    if first.fitted != second.fitted and first.fitted and second.fitted:
        raise DataError(
            f"{one} was measured on references fitted as {first.fitted}, {other} on {second.fitted}: other "
            f"pictures, so a difference says nothing of the LoRAs; give both the same fit.size_px and fit.fill"
        )
    if first.seeds != second.seeds:
        raise DataError(
            f"{one} was drawn with the seeds {_listed(first.seeds)}, {other} with {_listed(second.seeds)}: a "
            f"difference would hold that of their noise; give both the same sample.report_seeds (sample.seeds where "
            f"nothing is tested). Only pictures are drawn for it"
        )


def _side(name: str, beside: str, folders: Mapping[str, Sequence[Path]]) -> Measured:
    """A version's trainings, or the base of those that it is compared with."""
    return base_of(folders[beside]) if name == BASE else measured(folders[name])


def base_of(results: Sequence[Path]) -> Measured:
    """Step 0, of one training alone: whatever was trained, its pictures are the same."""
    base = measured(results, 0)
    return replace(base, steps=base.steps[:1], values={name: table[:1] for name, table in base.values.items()})


def _steps(side: Measured) -> str:
    return " ".join(map(str, side.steps))


def over_trainings(results: Sequence[Path], bootstrap_samples: int) -> dict[str, dict[str, float | None]]:
    """Of each metric what several trainings of the same settings gain over the base.

    Args:
        results: The folder of each training.
        bootstrap_samples: Resamples of an interval, where there is one training.

    Returns:
        `mean` over the trainings at their chosen steps; `between`: the standard deviation of the trainings' means;
        `delta` to step 0 with its interval; `p`, None where the references are no independent test.
    """
    trained, base = measured(results), base_of(results)
    found: dict[str, dict[str, float | None]] = {}
    for metric, table in trained.values.items():
        figures = against(base, trained, metric, bootstrap_samples)
        spread = float(table.mean(axis=1).std(ddof=1)) if len(table) > 1 else 0.0
        own = {"mean": float(table.mean()), "between": spread}
        found[metric] = {**own, **figures, "p": None if trained.doubt else figures["p"]}
    return found


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
