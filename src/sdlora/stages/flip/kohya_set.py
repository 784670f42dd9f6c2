"""The training set as kohya's trainer reads it: a caption beside each picture, or all captions in one file."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdlora import records

FOLDER = "kohya"
METADATA = "metadata.json"


def folder_name(repeats: int, trigger: str) -> str:
    """The folder that says how often its pictures are drawn, and of what they are: `3_captain`.

    A trigger's characters that are no part of a file's name become underscores.
    """
    word = re.sub(r"[^\w ,.+-]", "_", trigger)[:80].strip(" .")
    return f"{repeats}_{word or '_'}"


def write(folder: Path, layout: str, trigger: str, rows: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Write `kohya/` beside `train/`, or take it away.

    Args:
        folder: Fitted pictures with `train/`.
        layout: `folders`: pictures and `.txt` in `3_captain/` for kohya's DreamBooth datasets; `metadata`: those
            folders' pictures with one `metadata.json` each for its fine-tuning datasets; `none`.
        trigger: Named by the folders.
        rows: Of `train/metadata.jsonl`.

    Returns:
        The files written.
    """
    target = folder / FOLDER
    if layout == "none":
        shutil.rmtree(target, ignore_errors=True)
        return []
    files: list[Path] = []
    captions: dict[Path, dict[str, dict[str, Any]]] = {}
    with records.many_files() as put:
        for row in rows:
            place = target / folder_name(row["repeats"], trigger)
            picture = place / row["file_name"]
            put(picture, (folder / "train" / row["file_name"]).read_bytes())
            files.append(picture)
            text = one_line(row["text"])
            if layout == "folders":
                put(picture.with_suffix(".txt"), f"{text}\n".encode())
                files.append(picture.with_suffix(".txt"))
            captions.setdefault(place, {})[row["file_name"]] = {"caption": text, "image_size": list(row["bucket"])}
    if layout == "metadata":
        for place, found in captions.items():
            records.write_text(place / METADATA, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
            files.append(place / METADATA)
    for stale in {path for path in target.rglob("*") if path.is_file()} - set(files):
        stale.unlink()
    for place in sorted(path for path in target.iterdir() if path.is_dir() and not any(path.iterdir())):
        place.rmdir()
    return files


def one_line(text: str) -> str:
    """A caption without line ends: kohya reads the first line of a `.txt` and takes the others for other captions."""
    return " ".join(text.split())
