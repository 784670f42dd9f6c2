"""Self-contained HTML pages: one a version, one over all versions."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from sdlora import records
from sdlora.flow import freshness
from sdlora.flow.identity import told
from sdlora.images.pictures import png_bytes, read_rgb
from sdlora.lora.names import FOR_A1111
from sdlora.stages.evaluate.statistics import LEVEL, holm
from sdlora.stages.evaluate.tables import ONE_TRAINING, reported
from sdlora.stages.fit.fit import PICTURES
from sdlora.stages.report.plots import Series, metric_plot
from sdlora.stages.report.recipe import Summary
from sdlora.stages.report.sheet import contact_sheet

PAGES = Environment(loader=PackageLoader("sdlora.stages.report", "templates"), autoescape=True, trim_blocks=True)


def _uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def read_series(metrics_csv: Path) -> dict[str, list[tuple[int, float, float, float]]]:
    """Metric -> (step, mean, ci_low, ci_high) of a version's table."""
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for row in records.read_csv(metrics_csv):
        numbers = (float(row["mean"]), float(row["ci_low"]), float(row["ci_high"]))
        found.setdefault(row["metric"], []).append((int(row["step"]), *numbers))
    return found


def accepted_of(result: Path) -> list[str]:
    """What was accepted of a version's files after updates of code or packages, a line each."""
    lines = []
    for path in sorted((result / "made").glob("*.json")):
        made = freshness.read_made(path)
        for update in made.accepted if made else ():
            before, after = ({name: pair[side] for name, pair in update.items()} for side in (0, 1))
            lines.append(f"{path.stem}: {told(sorted(update), before, after)}")
    return lines


def write_version(name: str, settings: Summary, result: Path, references: Path) -> list[Path]:
    """Write a version's page: why this checkpoint, the table, the plots and every sample; and `sheet.png`.

    Args:
        name: The version.
        settings: What it is compared by.
        result: `results/<version>`.
        references: The fitted set that holds the references.

    Returns:
        The files written.
    """
    out, references = result / "report", references / PICTURES
    series = read_series(result / "metrics.csv")
    index = records.read_jsonl(result / "samples" / "index.jsonl")
    columns = sorted({row["reference"] for row in index})
    steps = sorted({row["step"] for row in index})
    pictures = {(row["step"], row["reference"]): row for row in reversed(index)}
    page = PAGES.get_template("version.html").render(
        name=name,
        settings=settings,
        best=records.read_json(result / "best.json"),
        table=records.read_csv(result / "metrics.csv"),
        accepted=accepted_of(result),
        plots=[_uri(metric_plot(metric, {name: points})) for metric, points in series.items()],
        prompts=[pictures[steps[0], column]["prompt"] for column in columns],
        references=[_uri((references / f"{column}.png").read_bytes()) for column in columns],
        rows=[
            (step, [_uri((result / "samples" / pictures[step, column]["file"]).read_bytes()) for column in columns])
            for step in steps
        ],
    )
    records.write_text(out / "index.html", page)
    best = records.read_json(result / "best.json")["best_step"]
    sheet = contact_sheet(
        [
            ("reference", [read_rgb(references / f"{column}.png") for column in columns]),
            *(
                (label, [read_rgb(result / "samples" / pictures[step, column]["file"]) for column in columns])
                for label, step in (("base", 0), (f"step {best}", best))
            ),
        ]
    )
    records.write_bytes(out / "sheet.png", png_bytes(sheet))
    previews: list[Path] = []
    for step in steps:
        shown = result / "samples" / pictures[step, columns[0]]["file"]
        previews += _previews(result / "export" / f"step-{step:06d}", shown)
    return [out / "index.html", out / "sheet.png", *previews]


def _previews(folder: Path, picture: Path) -> list[Path]:
    """Copy a picture beside the files for A1111, which shows `<name>.preview.png` on the LoRA's card."""
    previews = [path.with_suffix(".preview.png") for path in sorted(folder.glob(f"*{FOR_A1111}*.safetensors"))]
    for preview in previews:
        records.write_bytes(preview, picture.read_bytes())
    return previews


def write_index(versions: dict[str, Summary], results: Path, out: Path) -> list[Path]:
    """Write the page over all versions and its table: settings, best step, figures; one plot a metric."""
    best = {name: records.read_json(results / name / "best.json") for name in versions}
    series: dict[str, dict[str, Any]] = {}
    for name in versions:
        for metric, points in read_series(results / name / "metrics.csv").items():
            series.setdefault(metric, {})[name] = points
    plots: list[tuple[str, Series]] = list(series.items())
    figures = {name: shown(best[name]) for name in versions}
    correct(figures)
    page = PAGES.get_template("index.html").render(
        versions=versions,
        best=best,
        figures=figures,
        level=LEVEL,
        one_training=ONE_TRAINING,
        metrics=list(series),
        plots=[_uri(metric_plot(metric, lines)) for metric, lines in plots],
    )
    records.write_text(out / "index.html", page)
    _write_table(versions, best, figures, list(series), out / "versions.csv")
    return [out / "index.html", out / "versions.csv"]


Figures = dict[str, dict[str, float | None]]  # metric -> figure -> value
# Of each metric: at the best step; against step 0, with its interval and p-value, corrected over versions.
FIGURES = ("best", "delta", "ci_low", "ci_high", "p")


def shown(best: dict[str, Any]) -> Figures:
    """A version's figures; those by which it was chosen have no p-value, as they prove nothing."""
    found = reported(best)["figures"]
    return {metric: {**figures, "p": figures["p"] if best["test"] else None} for metric, figures in found.items()}


def correct(figures: dict[str, Figures]) -> None:
    """Correct each metric's p-values over the versions (Holm), in place."""
    for metric in {metric for found in figures.values() for metric in found}:
        family = [found[metric] for found in figures.values() if metric in found and found[metric]["p"] is not None]
        for member, p in zip(family, holm([float(member["p"] or 0) for member in family]), strict=True):
            member["p"] = round(p, 4)


def _write_table(
    versions: dict[str, Summary],
    best: dict[str, dict[str, Any]],
    figures: dict[str, Figures],
    metrics: list[str],
    path: Path,
) -> None:
    """One row a version; a metric that a version does not measure is empty."""
    columns = [
        "version",
        *next(iter(versions.values())),
        "best_step",
        "references",
        "tested_on",
        "resolved",
        *[f"{metric}_{figure}" for metric in metrics for figure in FIGURES],
    ]
    rows = []
    for name, settings in versions.items():
        tested_on = len(best[name]["test"]["references"]) if best[name]["test"] else 0
        found = [figures[name].get(metric, {}).get(figure) for metric in metrics for figure in FIGURES]
        rows.append(
            [name, *settings.values(), best[name]["best_step"], len(best[name]["references"]), tested_on,
             best[name]["resolved"], *("" if value is None else value for value in found)]
        )  # fmt: skip
    records.write_csv(path, columns, rows)
