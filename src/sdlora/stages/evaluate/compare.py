"""Two versions at their best checkpoints, picture by picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.errors import DataError
from sdlora.stages.evaluate.choose import NO_TEST
from sdlora.stages.evaluate.statistics import LEVEL, holm
from sdlora.stages.evaluate.tables import ONE_TRAINING, difference, is_tested, reported

COLUMNS = ("metric", "one", "step_one", "mean_one", "other", "step_other", "mean_other", "delta", "ci_low", "ci_high",
           "p", "better", "note")  # fmt: skip


@dataclass(frozen=True)
class _Measured:
    """A version at its best step, on the references that are reported."""

    step: int
    references: list[str]
    tested: bool
    higher_is_better: dict[str, bool]
    values: dict[str, list[float]]


def _at_best(result: Path) -> _Measured:
    if not (result / "best.json").exists():
        raise DataError(f"{result.name} is not measured yet: say `snakemake {result}/metrics.csv`")
    best: dict[str, Any] = records.read_json(result / "best.json")
    shown = reported(best)["references"]
    columns = [f"image{number}" for number, name in enumerate(best["references"], 1) if name in shown]
    rows = [row for row in records.read_csv(result / "metrics.csv") if int(row["step"]) == best["best_step"]]
    values = {row["metric"]: [float(row[column]) for column in columns] for row in rows}
    return _Measured(best["best_step"], shown, is_tested(best), best["higher_is_better"], values)


def compare(one: Path, other: Path, bootstrap_samples: int, out: Path) -> list[Path]:
    """Write one row a metric: both means, and the paired difference (other - one) with its 95 % interval.

    Measured on the test references, by which neither was chosen; without them, or where a person chose one of the two
    over the rule, no version is called better. `p` is
    corrected over the metrics (Holm).

    Args:
        one: `results/<version>`.
        other: The version it is compared with, measured on the same references.
        bootstrap_samples: Resamples of the interval.
        out: The CSV file to write.

    Raises:
        DataError: If one is not measured, or the two were measured on different references.
    """
    first, second = _at_best(one), _at_best(other)
    if first.references != second.references:
        raise DataError(f"{one.name} and {other.name} were measured on different references; they cannot be compared")
    tested = first.tested and second.tested
    shared = [metric for metric in first.values if metric in second.values]
    found = [difference(second.values[metric], first.values[metric], bootstrap_samples) for metric in shared]
    rows = []
    for metric, figures, p in zip(shared, found, holm([figures["p"] for figures in found]), strict=True):
        means = [sum(part.values[metric]) / len(part.references) for part in (first, second)]
        better = "neither for sure"
        if tested and p <= LEVEL:
            better = other.name if (figures["delta"] > 0) == first.higher_is_better[metric] else one.name
        rows.append(
            [metric, one.name, first.step, f"{means[0]:.4f}", other.name, second.step, f"{means[1]:.4f}",
             figures["delta"], figures["ci_low"], figures["ci_high"], f"{p:.4f}", better,
             ONE_TRAINING if tested else NO_TEST]
        )  # fmt: skip
    records.write_csv(out, COLUMNS, rows)
    return [out]
