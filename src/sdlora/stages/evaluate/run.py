"""One version's samples against its references."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from sdlora import choices, records
from sdlora.config.evaluate import Evaluate
from sdlora.errors import DataError
from sdlora.images.pictures import read_rgb
from sdlora.stages.evaluate.choose import Choice, explain
from sdlora.stages.evaluate.mean_rank import MEAN_RANK, mean_ranks
from sdlora.stages.evaluate.metric import Metric, Pixels
from sdlora.stages.evaluate.recipe import MeasuringRecipe
from sdlora.stages.evaluate.report_tables import COMPARED, write_tables
from sdlora.stages.evaluate.statistics import level_interval
from sdlora.stages.evaluate.tables import Measured, Table, Values, metrics_columns, metrics_rows, reported, written
from sdlora.stages.fit.fit import PICTURES
from sdlora.stages.sample.parts import FOLDERS, TEST, VALIDATION, all_drawn

CHOICE = "choice.json"  # what the stage `choose` writes
AT_ONCE = 400  # pictures in one call of a metric that is measured over several steps
NOTHING: Measured = MappingProxyType({})


def at_size_of(picture: Image.Image, reference: Pixels) -> Pixels:
    """A sample's pixels at its reference's size: hires pictures are reduced with Lanczos.

    Raises:
        DataError: If the sample is smaller or of another shape: that is never put right in silence.
    """
    height, width, _ = reference.shape
    if picture.width < width or picture.width * height != picture.height * width:
        raise DataError(f"a sample of {picture.size} px cannot be compared with a reference of {(width, height)} px")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture)


class Evaluator:
    """Some metrics, and what they need beside pictures, had once for all parts of the references.

    Args:
        metrics: What is measured, by name.
        result: `results/<version>`.
        references: The fitted set that holds the references, and what was learnt from.
        held_out: The ids of all references, whichever are measured.
        recipe: For metrics that prepare something of their own.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        result: Path,
        references: Path,
        held_out: Iterable[str],
        recipe: MeasuringRecipe | None,
    ) -> None:
        self._metrics, self._result = metrics, result
        self._truths = {name: np.asarray(read_rgb(references / PICTURES / f"{name}.png")) for name in held_out}
        wanted: set[str] = set().union(*(metric.needs for metric in metrics.values()))
        self._always: dict[str, Any] = {"training": Training(references)} if "training" in wanted else {}
        self._always["held_out"] = [*self._truths.values()]
        self._prepared = {name: metric.prepare(recipe) for name, metric in metrics.items() if metric.prepare}

    def measure(self, rows: Sequence[records.Row], known: Measured = NOTHING) -> list[records.Row]:
        """Each picture's row of an index, with every metric's value by its name.

        Args:
            rows: As `drawn` gives them.
            known: What was measured before; the rest is.

        Raises:
            DataError: If a metric cannot be had of them.
        """
        rows = sorted(rows, key=lambda row: int(row["step"]))
        steps = [[*own] for _, own in groupby(rows, key=lambda row: int(row["step"]))]
        some = [rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE)]
        values: dict[str, dict[str, float]] = {row["file"]: {} for row in rows}
        for at_once, groups in ((False, steps), (True, some)):
            metrics = {name: metric for name, metric in self._metrics.items() if metric.at_once == at_once}
            for group in groups if metrics else ():
                for name, found in self._measure(metrics, group, known).items():
                    for row, value in zip(group, found, strict=True):
                        values[row["file"]][name] = value
        return [{**row, **{name: values[row["file"]][name] for name in self._metrics}} for row in rows]

    def _measure(
        self, metrics: Mapping[str, Metric], rows: Sequence[records.Row], known: Measured
    ) -> dict[str, Sequence[float]]:
        """Each metric's values of some pictures; what is prepared is of the first one's step."""
        truths = [self._truths[row["reference"]] for row in rows]
        pictures = [
            at_size_of(read_rgb(self._result / row["file"]), truth) for row, truth in zip(rows, truths, strict=True)
        ]
        values: dict[str, Sequence[float]] = {}
        for name, metric in metrics.items():
            values[name] = _known_of(rows, name, known)
            if values[name]:
                continue
            given = self._always | (self._prepared[name](rows[0]["step"], rows) if name in self._prepared else {})
            try:
                values[name] = metric(pictures, truths, [row["prompt"] for row in rows], **given).tolist()
            except ValueError as error:
                raise DataError(f"{self._result}: {error}") from None
        return values


def _known_of(rows: Sequence[records.Row], name: str, known: Measured) -> list[float]:
    """A metric's values of some pictures; none if one of them is not known."""
    found = [known[row["file"]][name] for row in rows if name in known.get(row["file"], ())]
    return found if len(found) == len(rows) else []


def table_of(pictures: Sequence[records.Row], metrics: Iterable[str]) -> Table:
    """A part's values, the seeds of each reference averaged: the reference is what is resampled."""
    references = sorted({row["reference"] for row in pictures})
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for row in pictures:
        for name in metrics:
            values.setdefault((name, row["step"]), {}).setdefault(row["reference"], []).append(row[name])
    means = {
        key: [float(np.mean(by_reference[reference])) for reference in references]
        for key, by_reference in values.items()
    }
    return Table(references, means, sorted({row["seed"] for row in pictures}))


class Training(Sequence[Pixels]):
    """The pictures that were learnt from, padded as the references are; each is read when it is looked at."""

    def __init__(self, references: Path) -> None:
        rows = records.read_jsonl(references / "fit.jsonl")
        self._files = [references / row["file"] for row in rows if row["split"] == "train"]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, place: Any) -> Any:
        return np.asarray(read_rgb(self._files[place]))


def evaluate_version(
    settings: Evaluate, out: Path, references: Path, recipe: MeasuringRecipe | None = None
) -> list[Path]:
    """Write `metrics.csv`, `pictures.csv`, `best.json`; for DVC `metrics.json` and `curves/`; the report's `tables/`.

    The references that chose and those that report are measured apart; no mean is over both. What `choice.json` has of
    the former is not measured again.

    Args:
        settings: Metrics and the rule of choice.
        out: `results/<version>`, with `samples/`, `test_samples/` and `choice.json`.
        references: The fitted set that holds the references, padded.
        recipe: For metrics that look at more than pictures.

    Returns:
        The files written.

    Raises:
        DataError: If a metric cannot be had.
    """
    metrics: dict[str, Metric] = {name: choices.pick(choices.METRICS, name) for name in settings.metrics}
    rows, choice = all_drawn(out), read_choice(out)
    evaluator = Evaluator(metrics, out, references, sorted({row["reference"] for row in rows}), recipe)
    measured = {
        part: evaluator.measure([row for row in rows if row["part"] == part], choice.measured) for part in FOLDERS
    }
    parts = {part: table_of(pictures, metrics) for part, pictures in measured.items() if pictures}
    if len(settings.choose_by) > 1:
        for table in parts.values():
            table.values.update(mean_ranks(table.values, metrics, settings.choose_by))
        metrics = {MEAN_RANK.name: MEAN_RANK, **metrics}
    validation, test = parts[VALIDATION], parts.get(TEST)
    columns = metrics_columns(len(validation.references), len(test.references) if test else 0)
    records.write_csv(out / "metrics.csv", columns, metrics_rows(validation, test, settings.bootstrap_samples))
    pictures = _write_pictures([row for part in FOLDERS for row in measured[part]], settings.metrics, out)
    best = {**explain(validation, test, metrics, settings, choice), "fitted": references.name}
    records.write_json(out / "best.json", best)
    records.write_json(out / "metrics.json", {"best_step": best["best_step"], **reported(best)["figures"]})
    curves = write_curves(validation.values, settings.bootstrap_samples, out / "curves")
    tables = _report_tables(measured[VALIDATION], out, references, validation.references, metrics)
    return [out / "metrics.csv", pictures, out / "metrics.json", out / "best.json", *curves, *tables]


def read_choice(out: Path) -> Choice:
    """What the stage before has chosen."""
    return Choice(**records.read_json(out / CHOICE))


def _write_pictures(pictures: Sequence[records.Row], metrics: Sequence[str], out: Path) -> Path:
    """Every picture's own values, before its reference's seeds are averaged."""
    about = ("part", "step", "reference", "seed", "file")
    lines = [[*(row[key] for key in about), *(written(row[name]) for name in metrics)] for row in pictures]
    records.write_csv(out / "pictures.csv", [*about, *metrics], lines)
    return out / "pictures.csv"


def _report_tables(
    drawn: Sequence[records.Row], out: Path, references: Path, columns: Sequence[str], metrics: Mapping[str, Metric]
) -> list[Path]:
    """The first reference's prompt at every step, against the first five references; all of them chose."""
    truths = [np.asarray(read_rgb(references / PICTURES / f"{name}.png")) for name in columns[:COMPARED]]
    rows = [row for row in drawn if row["reference"] == columns[0]]
    pictures = {row["step"]: at_size_of(read_rgb(out / row["file"]), truths[0]) for row in reversed(rows)}
    return write_tables(out.name, pictures, truths, metrics, out / "tables")


def write_curves(values: Values, bootstrap_samples: int, folder: Path) -> list[Path]:
    """One small table a metric, of the references that chose: DVC draws all rows of a file as one line.

    Returns:
        The files written.
    """
    files = []
    for metric in dict.fromkeys(metric for metric, _ in values):
        rows = []
        for step in sorted(step for name, step in values if name == metric):
            found = level_interval(values[metric, step], bootstrap_samples)
            rows.append([str(step), *map(written, (found.mean, found.low, found.high))])
        files.append(folder / f"{metric}.csv")
        records.write_csv(files[-1], ["step", "mean", "ci_low", "ci_high"], rows)
    for stale in {*folder.glob("*.csv")} - {*files}:
        stale.unlink()
    return files
