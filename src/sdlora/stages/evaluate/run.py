"""One version's samples against its references."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sdlora import choices, records
from sdlora.config.params import Evaluate
from sdlora.errors import DataError
from sdlora.images.pictures import read_rgb
from sdlora.stages.evaluate.choose import explain
from sdlora.stages.evaluate.mean_rank import MEAN_RANK, mean_ranks
from sdlora.stages.evaluate.metric import Metric, Pixels
from sdlora.stages.evaluate.recipe import EvaluateRecipe
from sdlora.stages.evaluate.report_tables import COMPARED, write_tables
from sdlora.stages.evaluate.tables import Values, metrics_columns, metrics_rows, reported
from sdlora.stages.fit.fit import PICTURES


def at_size_of(picture: Image.Image, reference: Image.Image) -> Pixels:
    """A sample's pixels at its reference's size: hires pictures are reduced with Lanczos.

    Raises:
        DataError: If the sample is smaller or of another shape: that is never put right in silence.
    """
    if picture.width < reference.width or picture.width * reference.height != picture.height * reference.width:
        raise DataError(f"a sample of {picture.size} px cannot be compared with a reference of {reference.size} px")
    if picture.size != reference.size:
        picture = picture.resize(reference.size, Image.Resampling.LANCZOS)
    return np.asarray(picture)


def measure(
    samples: Path, references: Path, metrics: Mapping[str, Metric], recipe: EvaluateRecipe | None = None
) -> tuple[list[str], Values]:
    """All metrics of all samples.

    Args:
        samples: Folder with `index.jsonl`.
        references: The fitted set that holds the references, and what was learnt from.
        metrics: What is measured, by name.
        recipe: For metrics that prepare something of their own.

    Returns:
        The references' ids in column order, and values averaged over seeds.

    Raises:
        DataError: If there is nothing to measure, or a metric cannot be had of it.
    """
    index = records.read_jsonl(samples / "index.jsonl")
    if not index:
        raise DataError(f"{samples}: no samples, because the dataset has no references; set datasets.<name>.held_out")
    columns = sorted({row["reference"] for row in index})
    truths = {name: read_rgb(references / PICTURES / f"{name}.png") for name in columns}
    wants_training = any("training" in metric.needs for metric in metrics.values())
    always = {"training": _training(references)} if wants_training else {}
    prepared = {name: metric.prepare(recipe) for name, metric in metrics.items() if metric.prepare}
    values: Values = {}
    for step in sorted({row["step"] for row in index}):
        rows = [row for row in index if row["step"] == step]
        pictures = [at_size_of(read_rgb(samples / row["file"]), truths[row["reference"]]) for row in rows]
        truth = [np.asarray(truths[row["reference"]]) for row in rows]
        for name, metric in metrics.items():
            given = always | (prepared[name](step, rows) if name in prepared else {})
            try:
                found = metric(pictures, truth, [row["prompt"] for row in rows], **given)
            except ValueError as error:
                raise DataError(f"{samples}: {error}") from None
            values[name, step] = [
                float(np.mean([value for value, row in zip(found, rows, strict=True) if row["reference"] == column]))
                for column in columns
            ]
    return columns, values


def _training(references: Path) -> list[Pixels]:
    """The pictures that were learnt from, padded as the references are."""
    rows = [row for row in records.read_jsonl(references / "fit.jsonl") if row["split"] == "train"]
    return [np.asarray(read_rgb(references / row["file"])) for row in rows]


def evaluate_version(
    settings: Evaluate,
    samples: Path,
    references: Path,
    out: Path,
    chosen: int | None = None,
    recipe: EvaluateRecipe | None = None,
) -> list[Path]:
    """Write `metrics.csv`, `best.json`, for DVC `metrics.json` and `curves/`, and the report's own `tables/`.

    Args:
        settings: Metrics and the rule of choice.
        samples: Folder with `index.jsonl`.
        references: The fitted set that holds the references, padded.
        out: `results/<version>`.
        chosen: The step that a person chose over the rule's; None leaves it to the rule.
        recipe: For metrics that look at more than pictures.

    Returns:
        The files written.

    Raises:
        DataError: If a metric cannot be had, or the person's step is no checkpoint.
    """
    metrics: dict[str, Metric] = {name: choices.pick(choices.METRICS, name) for name in settings.metrics}
    columns, values = measure(samples, references, metrics, recipe)
    if len(settings.choose_by) > 1:
        values |= mean_ranks(values, metrics, settings.choose_by)
        metrics = {MEAN_RANK.name: MEAN_RANK, **metrics}
    records.write_csv(
        out / "metrics.csv", metrics_columns(len(columns)), metrics_rows(values, settings.bootstrap_samples)
    )
    best = explain(values, columns, metrics, settings, chosen)
    records.write_json(out / "best.json", best)
    records.write_json(out / "metrics.json", {"best_step": best["best_step"], **reported(best)["figures"]})
    curves = write_curves(values, settings.bootstrap_samples, out / "curves")
    tables = _report_tables(samples, references, columns, metrics, out)
    return [out / "metrics.csv", out / "metrics.json", out / "best.json", *curves, *tables]


def _report_tables(
    samples: Path, references: Path, columns: Sequence[str], metrics: Mapping[str, Metric], out: Path
) -> list[Path]:
    """The first reference's prompt at every step, against the first five references."""
    truths = [read_rgb(references / PICTURES / f"{name}.png") for name in columns[:COMPARED]]
    rows = [row for row in records.read_jsonl(samples / "index.jsonl") if row["reference"] == columns[0]]
    drawn = {row["step"]: at_size_of(read_rgb(samples / row["file"]), truths[0]) for row in reversed(rows)}
    return write_tables(out.name, drawn, [np.asarray(truth) for truth in truths], metrics, out / "tables")


def write_curves(values: Values, bootstrap_samples: int, folder: Path) -> list[Path]:
    """One small table a metric: DVC draws all rows of a file as one line.

    Returns:
        The files written.
    """
    files = []
    for metric in dict.fromkeys(metric for metric, _ in values):
        rows = metrics_rows({key: found for key, found in values.items() if key[0] == metric}, bootstrap_samples)
        files.append(folder / f"{metric}.csv")
        records.write_csv(files[-1], ["step", "mean", "ci_low", "ci_high"], [[row[0], *row[-3:]] for row in rows])
    for stale in {*folder.glob("*.csv")} - {*files}:
        stale.unlink()
    return files
