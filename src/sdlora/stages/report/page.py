"""Self-contained HTML pages, which ask no network: one a version, one over all versions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from sdlora import records
from sdlora.images.pictures import png_bytes, read_rgb
from sdlora.lora.names import FOR_A1111, file_in
from sdlora.stages.evaluate.tables import is_tested, rule_step, written
from sdlora.stages.fit.fit import PICTURES
from sdlora.stages.report.data import page_data
from sdlora.stages.report.recipe import BEST, OWN_PAGE, ReportRecipe, Summary
from sdlora.stages.report.sheet import contact_sheet
from sdlora.stages.report.versions import natural
from sdlora.stages.report.votes import Vote
from sdlora.stages.sample.parts import all_drawn

PAGES = Environment(loader=PackageLoader("sdlora.stages.report", "templates"), autoescape=True, trim_blocks=True)
FOLDER = Path(__file__).parent
VENDOR = ("uplot", "img-comparison-slider", "tablesort")
SCRIPTS = ("page", "dataset", "export", "start")  # in this order: the last one begins


def _page(title: str, data: dict[str, Any]) -> str:
    """The page as one file. Texts come from strangers: they are JSON, in which no tag can end."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    scripts = "\n".join(map(vendored, VENDOR))
    styles = "\n".join(map(read_part, ("vendor/uplot.css", "templates/page.css")))
    return PAGES.get_template("page.html").render(
        title=title,
        data=Markup(text),  # noqa: S704 - no tag can end in it
        vendor=Markup(scripts),  # noqa: S704 - ours, as the two below
        styles=Markup(styles),  # noqa: S704
        script=Markup("\n".join(read_part(f"templates/{name}.js") for name in SCRIPTS)),  # noqa: S704
    )


def read_part(name: str) -> str:
    """A script or style that pages hold."""
    return (FOLDER / name).read_text("utf-8")


def vendored(name: str) -> str:
    """A script of others with its licence, which a copy must hold: a page is one."""
    return f"/*!\n{read_part(f'vendor/{name}.LICENSE')}*/\n{read_part(f'vendor/{name}.js')}"


def write_version(recipe: ReportRecipe, votes: Sequence[Vote] = ()) -> list[Path]:
    """Write a version's page, `sheet.png`, the chosen step's pictures and its file as `<version>.safetensors`.

    The page shows why this checkpoint, every sample, the curves, the numbers and the dataset.

    Args:
        recipe: Of which version, its references and its dataset.
        votes: What people voted.

    Returns:
        The files written.
    """
    name, result, references = recipe.version, recipe.folder, recipe.references
    out = (result / OWN_PAGE).parent
    data = page_data(
        {name: recipe.settings}, result.parent, {name: references}, {name: recipe.dataset}, votes, root="../..",
        folders={name: recipe.folders},
    )  # fmt: skip
    records.write_text(out / "index.html", _page(name, data))
    index = all_drawn(result)
    pictures = {(row["step"], row["reference"]): row for row in reversed(index)}
    columns = sorted({row["reference"] for row in index})
    best = records.read_json(result / "best.json")["best_step"]
    sheet = contact_sheet(
        [
            ("reference", [read_rgb(references / PICTURES / f"{column}.png") for column in columns]),
            *(
                (label, [read_rgb(result / pictures[step, column]["file"]) for column in columns])
                for label, step in (("base", 0), (f"step {best}", best))
            ),
        ]
    )
    records.write_bytes(out / "sheet.png", png_bytes(sheet))
    chosen = result / f"{name}.safetensors"
    records.write_bytes(chosen, _file_of(result, best, recipe.average).read_bytes())
    previews: list[Path] = []
    for step in sorted({row["step"] for row in index}):
        shown = result / pictures[step, columns[0]]["file"]
        previews += _previews(_for_tools(result, step, recipe.average), shown)
    drawn = {column: result / pictures[best, column]["file"] for column in columns}
    return [out / "index.html", out / "sheet.png", chosen, *previews, *_best_pictures(result / BEST, drawn)]


def _best_pictures(folder: Path, drawn: Mapping[str, Path]) -> list[Path]:
    """The chosen step's pictures, by reference alone: DVC pairs those of two revisions by name."""
    files = []
    for reference, picture in drawn.items():
        files.append(folder / f"{reference}.png")
        records.write_bytes(files[-1], picture.read_bytes())
    for stale in {*folder.glob("*.png")} - {*files}:
        stale.unlink()
    return files


def _for_tools(result: Path, step: int, average: bool) -> Path:
    """The folder with the files for other tools of what a step's pictures are drawn with."""
    return file_in(result / "export" / f"step-{step:06d}", average).parent


def _file_of(result: Path, step: int, average: bool) -> Path:
    """The chosen step's file for A1111 and ComfyUI; diffusers' where no such file can be."""
    for_tools = sorted(_for_tools(result, step, average).glob(f"*{FOR_A1111}*.safetensors"))
    return for_tools[0] if for_tools else file_in(result / "checkpoints" / f"step-{step:06d}", average)


def _previews(folder: Path, picture: Path) -> list[Path]:
    """Copy a picture beside the files for A1111, which shows `<name>.preview.png` on the LoRA's card."""
    previews = [path.with_suffix(".preview.png") for path in sorted(folder.glob(f"*{FOR_A1111}*.safetensors"))]
    for preview in previews:
        records.write_bytes(preview, picture.read_bytes())
    return previews


def write_index(
    versions: Mapping[str, Summary],
    results: Path,
    out: Path,
    references: Mapping[str, Path],
    datasets: Mapping[str, Path],
    votes: Sequence[Vote] = (),
    trainings: Mapping[str, Sequence[str]] | None = None,
    folders: Mapping[str, Sequence[Path]] | None = None,
) -> list[Path]:
    """Write the page over all versions, which have pages, and its table: settings, best step, figures.

    Args:
        versions: What each is compared by.
        results: The folder with a folder for each.
        out: Where to.
        references: The fitted set that holds each version's references.
        datasets: The fitted set that each learnt from.
        votes: What people voted.
        trainings: Of versions that are trained several times theirs, by version.
        folders: Where each version's own pictures lie.
    """
    ordered = {name: versions[name] for name in sorted(versions, key=natural)}
    data = page_data(
        ordered, results, references, datasets, votes, root="..", trainings=trainings, pages=versions, folders=folders
    )
    records.write_text(out / "index.html", _page("Versions", data))
    _write_table(data["versions"], out / "versions.csv")
    return [out / "index.html", out / "versions.csv"]


def write_comparison(
    table: Path,
    versions: Mapping[str, Summary],
    results: Path,
    references: Mapping[str, Path],
    datasets: Mapping[str, Path],
    folders: Mapping[str, Sequence[Path]] | None = None,
    votes: Sequence[Vote] = (),
) -> Path:
    """Write the page beside a comparison's table: both at their chosen steps beside the base, and every number.

    It links to the versions' own pages where they are there: a comparison does not make them.

    Args:
        table: What `evaluate.compare` wrote.
        versions: One or two, and what each is compared by.
        results: The folder with a folder for each.
        references: The fitted set that holds each version's references.
        datasets: The fitted set that each learnt from.
        folders: Where each version's own pictures lie.
        votes: What people voted.
    """
    pages = [name for name in versions if (results / name / OWN_PAGE).is_file()]
    data = page_data(versions, results, references, datasets, votes, root="..", pages=pages, folders=folders)
    for version in data["versions"]:
        kept = {0, version["best"]["best_step"], rule_step(version["best"])}
        version["samples"] = {step: cells for step, cells in version["samples"].items() if int(step) in kept}
    shown = {cell[0] for version in data["versions"] for cells in _cells(version["samples"]) for cell in cells}
    shown |= {row["picture"] for rows in data["references"].values() for row in rows.values()}
    for found in data["datasets"].values():
        shown |= {row[part] for row in found["pictures"] for part in ("picture", "mask")}
        shown |= {one["picture"] for row in found["refused"] for one in (row, row["copy_of"]) if one}
    data["thumbnails"] = {key: value for key, value in data["thumbnails"].items() if key in shown}
    data["compared"] = records.read_csv(table)
    page = table.with_suffix(".html")
    records.write_text(page, _page(table.stem.replace("-vs-", " against "), data))
    return page


def _cells(samples: Mapping[str, Mapping[str, Mapping[str, list[str]]]]) -> list[list[list[str]]]:
    """The pictures of each step and reference, whatever their seeds."""
    return [[*seeds.values()] for references in samples.values() for seeds in references.values()]


# Of each metric: at the best step; against step 0, with its interval and p-value, corrected over versions.
FIGURES = ("best", "delta", "ci_low", "ci_high", "p")


def _write_table(versions: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One row a version, its verdict as on the page; empty: what was not measured, and a p-value without a test."""
    metrics = list(dict.fromkeys(metric for version in versions for metric in version["metrics"]))
    named = ("version", *versions[0]["settings"], "best_step", "rule_step", "references", "tested_on", "verdict",
             "votes_won", "votes", "votes_at_least")  # fmt: skip
    rows = []
    for version in versions:
        best, figures = version["best"], version["figures"]
        tested_on = len(best["test"]["references"]) if is_tested(best) else 0
        ballot = version["votes"].get(str(best["best_step"]), {})
        steps = (best["best_step"], rule_step(best), len(best["references"]), tested_on, version["verdict"],
                 ballot.get("won"), ballot.get("of"), ballot.get("at_least"))  # fmt: skip
        measured = [figures.get(metric, {}).get(figure) for metric in metrics for figure in FIGURES]
        cells = [None if value is None else written(value) for value in measured]
        rows.append([version["name"], *version["settings"].values(), *steps, *cells])
    records.write_csv(path, [*named, *[f"{metric}_{figure}" for metric in metrics for figure in FIGURES]], rows)
