"""Candidates in, accepted pictures and a manifest out."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdlora import choices, records
from sdlora.errors import DataError, MissingError
from sdlora.params import Dataset
from sdlora.pictures import open_picture
from sdlora.scrape.source import Candidate, ScrapeContext


def gather(dataset: Dataset, out: Path, context: ScrapeContext | None = None) -> list[Path]:
    """Write `raw/<sha256>.<ext>`, `manifest.jsonl` and `rejected.jsonl`.

    Args:
        dataset: Its sources, the minimum and what is held out.
        out: The dataset's folder.

    Returns:
        The files written.

    Raises:
        DataError: If fewer training pictures than the minimum were accepted.
    """
    context = replace(context or ScrapeContext(), limits=dataset.scrape)
    accepted: dict[str, records.Row] = {}
    rejected: list[records.Row] = []
    raw = out / "raw"
    for found in _candidates(dataset, context):
        if found.content is None:
            raise MissingError(f"{found.label}: this release fetches nothing yet")
        digest = hashlib.sha256(found.content).hexdigest()
        try:
            if digest in accepted:
                raise DataError(f"{found.label}: the same bytes as {accepted[digest]['name']}")
            picture = open_picture(found.content, found.label)
        except DataError as error:
            rejected.append({"name": found.label, "engine": found.engine, "sha256": digest, "reason": str(error)})
            continue
        file = f"{digest}.{str(picture.format).lower()}"
        records.write_bytes(raw / file, found.content)
        accepted[digest] = {
            "id": digest[:16], "file": file, "sha256": digest, "name": found.label, "engine": found.engine,
            "query": found.query, "page_url": found.page_url, "licence": found.licence, "caption": found.caption,
            "format": picture.format, "width_px": picture.width, "height_px": picture.height,
        }  # fmt: skip
    rows = _split(sorted(accepted.values(), key=lambda row: str(row["id"])), dataset.held_out)
    training = sum(row["split"] == "train" for row in rows)
    records.write_jsonl(out / "rejected.jsonl", rejected)
    if training < dataset.minimum:
        reasons = "; ".join(row["reason"] for row in rejected[:3]) or "none was rejected"
        raise DataError(
            f"{out}: {training} usable training pictures, but the dataset's minimum is {dataset.minimum} "
            f"({len(rejected)} rejected: {reasons})"
        )
    files = {row["file"] for row in rows}
    for path in raw.iterdir():
        if path.name not in files:
            path.unlink()
    records.write_jsonl(out / "manifest.jsonl", rows)
    print(f"scrape: {training} to learn from, {len(rows) - training} references, {len(rejected)} rejected", flush=True)
    return [out / "manifest.jsonl", out / "rejected.jsonl", *(raw / file for file in sorted(files))]


def _candidates(dataset: Dataset, context: ScrapeContext) -> Iterator[Candidate]:
    for source in dataset.sources:
        if source.kind not in choices.SOURCES:
            raise MissingError(
                f"the source {source.kind!r} cannot be read by this release (it reads: {', '.join(choices.SOURCES)}); "
                f"put the pictures into a folder and use {{kind: folder, path: …}}"
            )
        yield from choices.pick(choices.SOURCES, source.kind)(source, context)


def _split(rows: list[records.Row], held_out: int | str) -> list[records.Row]:
    """Mark references: a subfolder's pictures, or as many as asked for, evenly by content hash."""
    if isinstance(held_out, str):
        references = {row["id"] for row in rows if str(row["name"]).split("/")[0] == held_out}
        if not references:
            raise DataError(f"held_out names the subfolder {held_out!r}, but no accepted picture lies in it")
    else:
        references = {row["id"] for row in rows[:held_out]}
    return [{**row, "split": "reference" if row["id"] in references else "train"} for row in rows]


def sources_of(recipe: dict[str, Any]) -> Dataset:
    """The typed dataset of a recipe (its trigger belongs to a later stage)."""
    return Dataset.model_validate_json(records.canonical_json({**recipe["dataset"], "trigger": "-"}))
