"""Two versions at their best checkpoints, picture by picture."""

from pathlib import Path
from typing import Any

from sdlora import choices, records
from sdlora.errors import DataError
from sdlora.stages.evaluate.tables import LEAST_REFERENCES, difference, excludes_zero, verdict

COLUMNS = ("metric", "one", "step_one", "mean_one", "other", "step_other", "mean_other", "delta", "ci_low", "ci_high",
           "better")  # fmt: skip


def _at_best(result: Path) -> tuple[int, list[str], dict[str, list[float]]]:
    if not (result / "best.json").exists():
        raise DataError(f"{result.name} is not measured yet: say `snakemake {result}/metrics.csv`")
    best: dict[str, Any] = records.read_json(result / "best.json")
    rows = [row for row in records.read_csv(result / "metrics.csv") if int(row["step"]) == best["best_step"]]
    values = {row["metric"]: [float(v) for key, v in row.items() if key.startswith("image")] for row in rows}
    return best["best_step"], best["references"], values


def compare(one: Path, other: Path, bootstrap_samples: int, out: Path) -> list[Path]:
    """Write one row a metric: both means, and the paired difference (other - one) with its 95 % interval.

    Args:
        one: `results/<version>`.
        other: The version it is compared with, measured on the same references.
        bootstrap_samples: Resamples of the interval.
        out: The CSV file to write.

    Raises:
        DataError: If one is not measured, or the two were measured on different references.
    """
    (step_one, references, values), (step_other, others, other_values) = _at_best(one), _at_best(other)
    if references != others:
        raise DataError(f"{one.name} and {other.name} were measured on different references; they cannot be compared")
    rows = []
    for metric in (name for name in values if name in other_values):
        found = difference(other_values[metric], values[metric], bootstrap_samples)
        means = [sum(v) / len(v) for v in (values[metric], other_values[metric])]
        sign = -1 if metric in choices.LOWER_IS_BETTER else 1
        better = "neither for sure"
        if len(references) < LEAST_REFERENCES:
            better = verdict(found, len(references))
        elif excludes_zero(found):
            better = other.name if sign * found["delta"] > 0 else one.name
        rows.append(
            [metric, one.name, step_one, f"{means[0]:.4f}", other.name, step_other, f"{means[1]:.4f}",
             found["delta"], found["ci_low"], found["ci_high"], better]
        )  # fmt: skip
    records.write_csv(out, COLUMNS, rows)
    return [out]
