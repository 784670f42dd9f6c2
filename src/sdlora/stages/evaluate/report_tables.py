"""The report's own protocol: one prompt, one picture a checkpoint, against five pictures.

Its tables 1 to 4 are laid out like this: rows `pixel0 ... pixel600`, columns image1 to image5 and their mean, three
decimals, a table a metric. They show how a number moves with the step; no interval stands behind one picture.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sdlora import records
from sdlora.stages.evaluate.metric import Floats, Metric, Pixels

COMPARED = 5  # pictures


def table_row(label: str, values: Sequence[float]) -> list[str]:
    """A row's label, its values and their mean, three decimals."""
    return [label, *(f"{value:.3f}" for value in (*values, float(np.mean(values))))]


def columns_of(count: int) -> list[str]:
    """The header over so many pictures."""
    return ["step", *(f"image{number}" for number in range(1, count + 1)), "mean"]


def write_tables(
    version: str,
    drawn: Mapping[int, Pixels],
    compared: Sequence[Pixels],
    metrics: Mapping[str, Metric],
    folder: Path,
) -> list[Path]:
    """Write `<metric>.csv` and `<metric>.md` for each metric that compares two pictures.

    Args:
        version: What rows are called by, before the step.
        drawn: Step -> the picture that it drew of the prompt.
        compared: The pictures it is compared with, of its size; the report had five.
        metrics: What is measured, by name.
        folder: Where tables go; those of metrics that are not measured any more are deleted.

    Returns:
        The files written.
    """
    files: list[Path] = []
    columns = columns_of(len(compared))
    for name, metric in metrics.items():
        if not metric.of_a_pair:
            continue
        rows = []
        for step in sorted(drawn):
            found: Floats = metric([drawn[step]] * len(compared), compared, [""] * len(compared))
            rows.append(table_row(f"{version}{step}", found.tolist()))
        records.write_csv(folder / f"{name}.csv", columns, rows)
        records.write_text(folder / f"{name}.md", records.markdown_table(columns, rows))
        files += [folder / f"{name}.csv", folder / f"{name}.md"]
    folder.mkdir(parents=True, exist_ok=True)
    for stale in {*folder.glob("*.csv"), *folder.glob("*.md")} - {*files}:
        stale.unlink()
    return files
