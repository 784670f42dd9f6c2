"""The table of docs/versions.md, from the report's own: `sdlora versions`."""

import re
from math import floor, log10

from sdlora import records
from sdlora.stages.evaluate.statistics import LEVEL

SETTINGS = ("version", "dataset", "fit", "rank", "learning_rate", "steps", "hires", "best_step")


def markdown(table: list[dict[str, str]]) -> str:
    """One row a version: its settings, and each metric at its best step with what it gained over step 0.

    Args:
        table: Rows of `results/report/versions.csv`.
    """
    metrics = [key.removesuffix("_best") for key in table[0] if key.endswith("_best")]
    columns = [*SETTINGS, *(word for metric in metrics for word in (metric, "against step 0"))]
    lines = []
    for row in sorted(table, key=lambda row: natural(row["version"])):
        cells = [row[key] for key in SETTINGS]
        for metric in metrics:
            cells += [row[f"{metric}_best"], gain(row, metric)]
        lines.append(cells)
    return records.markdown_table(columns, lines)


def natural(name: str) -> list[tuple[int, str]]:
    """What sorts v10 after v9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _decimals(number: float) -> int:
    """Three, or as many as leave two digits."""
    return max(3, 1 - floor(log10(abs(number)))) if number else 3


def gain(row: dict[str, str], metric: str) -> str:
    """A metric's difference to step 0 and its interval; bold where an independent test has found one.

    Its p-value is corrected over the versions; without a test there is none.
    """
    if not row[f"{metric}_delta"]:
        return ""
    delta, low, high = (float(row[f"{metric}_{key}"]) for key in ("delta", "ci_low", "ci_high"))
    text = f"{delta:+.{_decimals(delta)}f} [{low:.{_decimals(low)}f}, {high:.{_decimals(high)}f}]"
    p = row[f"{metric}_p"]
    return f"**{text}**" if p and float(p) <= LEVEL else text
