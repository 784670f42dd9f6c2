"""What a version learnt from, as the page shows it: pictures, padding, masks, near-duplicates, and what was refused."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from os.path import normpath
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora import records
from sdlora.errors import DataError
from sdlora.flow.hashing import sha256_of
from sdlora.images import masks
from sdlora.images.pictures import open_picture, to_rgb
from sdlora.stages.caption.recipe import NOBODY
from sdlora.stages.fit.fit import PICTURES
from sdlora.stages.report.thumbnails import Thumbnails

REFUSED = 200  # rows that a page lists; a search may refuse thousands
REFUSED_PX = 64  # longer side of a refused picture
LEFT_OUT = (214, 39, 90)  # colour of what a mask leaves out
OPACITY = 0.7


def dataset(folder: Path, thumbnails: Thumbnails, folders: Iterable[Path] = ()) -> dict[str, Any]:
    """A fitted set: its training pictures, and the first of what was refused.

    Args:
        folder: Where `fit.jsonl` lies.
        thumbnails: Takes the pictures.
        folders: Where the user's own pictures lie: of the refused ones, these alone are still there.

    Returns:
        `pictures`, `refused`, and `refused_of`: how many were refused in all.
    """
    source = folder.parent
    manifest = {row["id"]: row for row in records.read_jsonl(source / "manifest.jsonl")}
    captions = {row["id"]: row for row in records.read_jsonl(folder / "captions.jsonl")}
    pictures = [
        {
            **_fitted(row, folder, thumbnails),
            **_about(manifest.get(row["id"], {})),
            "caption": captions.get(row["id"], {}).get("caption", ""),
            "by": author(str(captions.get(row["id"], {}).get("origin", ""))),
        }
        for row in records.read_jsonl(folder / "fit.jsonl")
        if row["split"] == "train"
    ]
    rejected = records.read_jsonl(source / "rejected.jsonl")
    copies = {str(row["sha256"])[:16]: row["copy_of"] for row in rejected if "copy_of" in row}
    refused = []
    for row in rejected[:REFUSED]:
        kept = _kept(row.get("copy_of"), manifest, copies)
        refused.append(
            {
                "name": row["name"],
                "reason": row["reason"],
                "picture": _refused(row, source, folders, thumbnails),
                "copy_of": kept and _stayed(manifest[kept], folder, thumbnails),
            }
        )
    return {"pictures": pictures, "refused": refused, "refused_of": len(rejected)}


def _fitted(row: records.Row, folder: Path, thumbnails: Thumbnails) -> dict[str, Any]:
    """How a picture lies in its square or bucket, and what its mask leaves out."""
    (left, top, width, height), (across, down) = row["box"], row["bucket"]
    mask = folder / masks.FOLDER / f"{row['id']}.png"
    return {
        "id": row["id"],
        "picture": thumbnails.key(folder / row["file"]),
        "name": row["name"],
        "original": row["original"],
        "aspect": round(across / down, 4),
        "box": [round(part, 4) for part in (left / across, top / down, width / across, height / down)],
        "share": round(width * height / (across * down), 3),
        "mask": _left_out(mask, row["box"], thumbnails) if mask.is_file() else None,
    }


def _left_out(file: Path, box: tuple[int, int, int, int], thumbnails: Thumbnails) -> str:
    """A layer for the picture: coloured where a mask is black. The padding, where every mask is, stays clear."""
    mask = masks.read_fitted(file)
    left, top, width, height = box
    inside = (left, top, left + width, top + height)
    cover = Image.new("L", mask.size, 0)
    cover.paste(mask.crop(inside).point(lambda white: round(OPACITY * (255 - white))), inside)
    layer = Image.new("RGBA", mask.size, LEFT_OUT)
    layer.putalpha(cover)
    return thumbnails.add(layer)


def _about(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest knows of a picture."""
    return {
        "licence": row.get("licence"),
        "page": row.get("page_url"),
        "engine": row.get("engine"),
        "copy_of": row.get("copy_of"),
    }


def _kept(copy_of: str | None, manifest: Mapping[str, Any], copies: Mapping[str, str]) -> str | None:
    """The id of the picture that stayed in the place of a copy: what the copy was held against may be one itself."""
    seen = set()
    while copy_of is not None and copy_of not in manifest and copy_of not in seen:
        seen.add(copy_of)
        copy_of = copies.get(copy_of)
    return copy_of if copy_of in manifest else None


def _stayed(row: records.Row, folder: Path, thumbnails: Thumbnails) -> dict[str, Any]:
    """The picture that a refused one is a copy of."""
    picture = thumbnails.key(folder / PICTURES / f"{row['id']}.png")
    return {"id": row["id"], "name": row["name"], "picture": picture, "reference": row["split"] == "reference"}


def _refused(row: records.Row, source: Path, folders: Iterable[Path], thumbnails: Thumbnails) -> str | None:
    """A refused picture, where its file is still there and can be decoded."""
    for path in _places(row, source, folders):
        with suppress(DataError, OSError):
            if row["sha256"] and path.is_file() and sha256_of(path) == row["sha256"]:
                return thumbnails.add(to_rgb(open_picture(path.read_bytes(), row["name"])), REFUSED_PX)
    return None


def _places(row: records.Row, source: Path, folders: Iterable[Path]) -> Iterable[Path]:
    """Where a refused picture may lie: beside one of the same bytes, or among the user's own."""
    if row.get("format") and re.fullmatch(r"[0-9a-f]{64}\.[A-Z0-9]+", f"{row['sha256']}.{row['format']}"):
        yield source / "raw" / f"{row['sha256']}.{row['format'].lower()}"
    for folder in folders:
        path = folder / str(row["name"])
        if Path(normpath(path)).is_relative_to(normpath(folder)):  # a name comes from a shared set's own table
            yield path


def author(origin: str) -> str:
    """Who wrote a caption."""
    known = {"override": "written by hand", "source": "from the source", NOBODY: "is the trigger alone"}
    return known.get(origin, "by BLIP")
