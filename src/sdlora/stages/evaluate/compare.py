"""Two versions at their chosen checkpoints, picture by picture; or a version and the base without its LoRA."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.errors import DataError
from sdlora.stages.evaluate.choose import BY_A_PERSON, NO_TEST
from sdlora.stages.evaluate.mean_rank import NAME as MEAN_RANK
from sdlora.stages.evaluate.statistics import LEVEL, holm
from sdlora.stages.evaluate.tables import ONE_TRAINING, difference, is_tested, reported

BASE = "base"  # in the place of a version: the other one at step 0
COLUMNS = ("metric", "one", "step_one", "mean_one", "other", "step_other", "mean_other", "delta", "ci_low", "ci_high",
           "p", "better", "note")  # fmt: skip
ONE_LORA = "one training: another of the same settings may differ"


@dataclass(frozen=True)
class _Measured:
    """A version at its chosen step, on the references that are reported."""

    step: int
    references: list[str]
    doubt: str  # why nothing may be called better; empty where it may
    higher_is_better: dict[str, bool]
    values: dict[str, list[float]]


def _measured(result: Path, step: int | None = None) -> _Measured:
    if not (result / "best.json").exists():
        raise DataError(f"{result.name} is not measured yet: say `snakemake {result}/metrics.csv`")
    best: dict[str, Any] = records.read_json(result / "best.json")
    shown, wanted = reported(best)["references"], best["best_step"] if step is None else step
    columns = [f"image{number}" for number, name in enumerate(best["references"], 1) if name in shown]
    rows = [row for row in records.read_csv(result / "metrics.csv") if int(row["step"]) == wanted]
    values = {row["metric"]: [float(row[column]) for column in columns] for row in rows}
    doubt = "" if is_tested(best) else BY_A_PERSON if best["test"] else NO_TEST
    return _Measured(wanted, shown, doubt, best["higher_is_better"], values)


def compare(one: Path, other: Path, bootstrap_samples: int, out: Path) -> list[Path]:
    """Write one row a metric: both means, and the paired difference (other - one) with its 95 % interval.

    Measured on the test references, by which neither was chosen; without them, or where a person chose one of the two
    over the rule, no version is called better. `p` is corrected over the metrics (Holm). Mean ranks are left out: they
    are ranks among a version's own checkpoints.

    Args:
        one: `results/<version>`, or `results/base` for the other one's base.
        other: The version it is compared with, measured on the same references; or the base.
        bootstrap_samples: Resamples of the interval.
        out: The CSV file to write.

    Raises:
        DataError: If one is not measured, or the two were measured on different references.
    """
    if one.name == other.name:
        raise DataError(f"{one.name} is compared with itself; name another version, or {BASE}")
    first = _measured(other, 0) if one.name == BASE else _measured(one)
    second = _measured(one, 0) if other.name == BASE else _measured(other)
    if first.references != second.references:
        raise DataError(f"{one.name} and {other.name} were measured on different references; they cannot be compared")
    doubt = first.doubt or second.doubt
    shared = [metric for metric in first.values if metric in second.values and metric != MEAN_RANK]
    found = [difference(second.values[metric], first.values[metric], bootstrap_samples) for metric in shared]
    rows = []
    for metric, figures, p in zip(shared, found, holm([figures["p"] for figures in found]), strict=True):
        means = [sum(part.values[metric]) / len(part.references) for part in (first, second)]
        better = "neither for sure"
        if not doubt and p <= LEVEL:
            better = other.name if (figures["delta"] > 0) == first.higher_is_better[metric] else one.name
        rows.append(
            [metric, one.name, first.step, f"{means[0]:.4f}", other.name, second.step, f"{means[1]:.4f}",
             figures["delta"], figures["ci_low"], figures["ci_high"], f"{p:.4f}", better,
             doubt or (ONE_LORA if BASE in (one.name, other.name) else ONE_TRAINING)]
        )  # fmt: skip
    records.write_csv(out, COLUMNS, rows)
    return [out]
