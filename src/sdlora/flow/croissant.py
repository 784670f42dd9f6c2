"""What a version learnt from, as Croissant: `results/<version>/croissant.json`, which libraries of datasets read.

    sdlora provenance v8 --croissant

Croissant 1.0, https://docs.mlcommons.org/croissant/docs/croissant-spec.html: three tables over the files that stages
wrote, each named with its sha256: pictures (`manifest.jsonl`), captions (`captions.jsonl`) and what is trained on
(`train/metadata.jsonl`). The package `mlcroissant` writes the file, and what it calls an error is one here.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.errors import DataError, ParamsError
from sdlora.flow.freshness import Made
from sdlora.stages.scrape import manifest

NAME = "croissant.json"


@dataclass(frozen=True)
class Table:
    """One file of rows that a stage writes.

    Attributes:
        file: Its path below the stage's folder.
        what: What a row of it is.
        columns: Those that say something outside sdlora; the first names the picture.
    """

    file: str
    what: str
    columns: tuple[str, ...]


TABLES = {
    "scrape": Table(
        "manifest.jsonl", "pictures",
        ("id", "file", "sha256", "url", "page_url", "licence", "engine", "query", "title", "split"),
    ),
    "caption": Table("captions.jsonl", "captions", ("id", "caption", "origin", "split")),
    "flip": Table("train/metadata.jsonl", "learnt", ("id", "file_name", "text", "mirrored", "repeats")),
}  # fmt: skip
BOOLEAN, WHOLE = {"mirrored"}, {"repeats"}


def write(folder: Path, jobs: dict[Path, Made]) -> Path:
    """Write the file of a version.

    Args:
        folder: The version's.
        jobs: The records that it goes back to, which fit their files.

    Raises:
        ParamsError: If `mlcroissant` is not installed.
        DataError: If it finds an error in what was written.
    """
    try:
        import mlcroissant
    except ModuleNotFoundError:
        raise ParamsError("--croissant needs the package mlcroissant: say `pip install 'sdlora[croissant]'`") from None
    found = [*_found(jobs)]
    rows = [row for at, table, _ in found if table.what == "pictures" for row in manifest.read(at)]
    licences = [str(row["licence"]) for row in rows if row.get("licence")]
    described = mlcroissant.Metadata(
        name=folder.name,
        description=f"The pictures and captions that version {folder.name} was trained on and measured with: "
        f"{len(rows)} pictures, {len(rows) - len(licences)} of them without a recorded licence.",
        license=sorted({*licences}) if len(licences) == len(rows) > 0 else None,
        distribution=[_file(at / table.file, digest, folder) for at, table, digest in found],
        record_sets=[_rows(at, table, _pictures_of(at, found)) for at, table, _ in found],
    )
    if described.issues.errors:
        raise DataError(f"{folder / NAME}: {described.issues.report()}")
    records.write_json(folder / NAME, described.to_json())
    return folder / NAME


def _found(jobs: dict[Path, Made]) -> Iterator[tuple[Path, Table, str]]:
    """Each table's folder, what it is, and its file's sha256."""
    for path, made in jobs.items():
        table = TABLES.get((made.asked or {})["stage"])
        at = path.parent.parent
        if table is not None and str(at / table.file) in made.outputs:
            yield at, table, made.outputs[str(at / table.file)]


def _pictures_of(at: Path, found: list[tuple[Path, Table, str]]) -> str:
    """The id of the table of pictures of the dataset in which a folder lies."""
    return next(
        f"{other}/pictures" for other, table, _ in found if table.what == "pictures" and other in (at, at.parent)
    )


def _file(path: Path, digest: str, folder: Path) -> Any:
    import mlcroissant

    return mlcroissant.FileObject(
        id=str(path),
        name=str(path),
        content_url=Path(os.path.relpath(path, folder)).as_posix(),
        encoding_formats=["application/jsonlines"],
        sha256=digest,
    )


def _rows(at: Path, table: Table, pictures: str) -> Any:
    """A table's columns; the first is the id of a picture."""
    import mlcroissant

    name = f"{at}/{table.what}"
    kinds = mlcroissant.DataType
    fields = [
        mlcroissant.Field(
            id=f"{name}/{column}",
            name=f"{name}/{column}",
            data_types=kinds.BOOL if column in BOOLEAN else kinds.INTEGER if column in WHOLE else kinds.TEXT,
            source=mlcroissant.Source(file_object=str(at / table.file), extract=mlcroissant.Extract(column=column)),
            references=mlcroissant.Source(field=f"{pictures}/id") if column == "id" and name != pictures else None,
        )
        for column in table.columns
    ]
    return mlcroissant.RecordSet(id=name, name=name, key=f"{pictures}/id" if name == pictures else None, fields=fields)
