"""Mirror pictures: both orientations as files, so that each is encoded; the draw is made in training."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageOps

from sdlora import records
from sdlora.errors import DataError, suggest
from sdlora.images import masks
from sdlora.images.pictures import png_bytes, read_rgb
from sdlora.progress import Progress
from sdlora.stages.caption.caption import leading
from sdlora.stages.fit.fit import PICTURES
from sdlora.stages.flip import kohya_set

_OTHER = {"left": "right", "right": "left"}


_LEFT_OR_RIGHT = re.compile(r"(?<![^\W_])(left|right)(?![^\W_])", re.IGNORECASE)  # words, also of `looking_left`


def swap_left_right(caption: str, trigger: str = "") -> str:
    """'small, on the left' -> 'small, on the right', in any case; a trigger at the beginning stays what it is."""

    def other(match: re.Match[str]) -> str:
        word = match.group()
        swapped = _OTHER[word.lower()]
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    found = leading(trigger).match(caption)
    begin = found.end() if found else 0
    return caption[:begin] + _LEFT_OR_RIGHT.sub(other, caption[begin:])


def repeats_of(names: Iterable[str], repeats: Mapping[str, int] | str) -> dict[str, int]:
    """How often an epoch draws each picture.

    Args:
        names: The pictures' paths inside their source.
        repeats: Draws by subfolder (the longest path that fits wins), or `kohya`: a subfolder called
            `3_hat` says 3, as in kohya's trainer.

    Returns:
        Draws by name; 1 where nothing is said.

    Raises:
        DataError: If a subfolder holds no picture: its name is probably wrong.
    """
    names = list(names)
    folders = {name: [str(p) for p in Path(name).parents if str(p) != "."] for name in names}
    known = {folder for each in folders.values() for folder in each}
    asked = _numbered(known) if isinstance(repeats, str) else {f.strip("/"): count for f, count in repeats.items()}
    for folder in asked:
        if folder not in known:
            raise DataError(f"datasets.<name>.repeats: no training picture lies in {folder!r}{suggest(folder, known)}")
    return {name: next((asked[folder] for folder in folders[name] if folder in asked), 1) for name in names}


def _numbered(folders: Iterable[str]) -> dict[str, int]:
    """Repeats that folders' own names give."""
    found = {folder: re.match(r"(\d+)_", Path(folder).name) for folder in folders}
    repeats = {folder: int(match.group(1)) for folder, match in found.items() if match}
    if not repeats or 0 in repeats.values():
        raise DataError(
            f"datasets.<name>.kohya_repeats: kohya needs training pictures in subfolders with names such as 3_hat, and "
            f"no 0; there are: {', '.join(sorted(folders)) or 'no subfolders'}"
        )
    return repeats


def flip_dataset(
    folder: Path,
    mirror: bool,
    swap_words: bool,
    repeats: Mapping[str, int] | str | None = None,
    kohya: Sequence[str] | None = None,
    trigger: str = "",
) -> list[Path]:
    """Write `train/` in Hugging Face's ImageFolder layout: pictures, mirrored pictures, `metadata.jsonl`.

    A row also says what training needs to know of a picture: where it lies in the fitted one (mirrored
    with it), its sizes, how often an epoch draws it, and its mask in `train-masks/`.

    Args:
        folder: Fitted pictures with `fit.jsonl` and `captions.jsonl`.
        mirror: Whether mirrored copies are made.
        swap_words: Whether left and right change places in a mirrored picture's caption.
        repeats: See `repeats_of`.
        kohya: Layout and trigger of the same set for kohya's trainer (`kohya_set.write`); None = none.
        trigger: Keeps its own left and right.

    Returns:
        The files written.
    """
    fitted = {row["id"]: row for row in records.read_jsonl(folder / "fit.jsonl")}
    captions = [row for row in records.read_jsonl(folder / "captions.jsonl") if row["split"] == "train"]
    counts = repeats_of((fitted[row["id"]]["name"] for row in captions), repeats or {})
    rows, files = [], []
    progress = Progress("flip", len(captions))
    with records.many_files() as write:
        for row in captions:
            source = fitted[row["id"]]
            for mirrored in (False, True) if mirror else (False,):
                name = f"{row['id']}.flip.png" if mirrored else f"{row['id']}.png"
                files += _copy(folder, row["id"], name, mirrored, write)
                text = swap_left_right(row["caption"], trigger) if mirrored and swap_words else row["caption"]
                about = {"text": text, "id": row["id"], "mirrored": mirrored, "repeats": counts[source["name"]]}
                rows.append({"file_name": name, **about, **_geometry(source, mirrored)})
            progress.advance()
    for stale in {*(folder / "train").glob("*.png"), *(folder / masks.TRAIN_FOLDER).glob("*.png")} - set(files):
        stale.unlink()
    records.write_jsonl(folder / "train" / "metadata.jsonl", rows)
    layout, concept = kohya or ("none", "")
    return [folder / "train" / "metadata.jsonl", *files, *kohya_set.write(folder, layout, concept, rows)]


def _copy(folder: Path, picture: str, name: str, mirrored: bool, write: records.Write) -> list[Path]:
    """One orientation of a picture and, where it has one, of its mask."""
    pairs = [(folder / PICTURES / f"{picture}.png", folder / "train" / name)]
    mask = folder / masks.FOLDER / f"{picture}.png"
    if mask.exists():
        pairs.append((mask, folder / masks.TRAIN_FOLDER / name))
    for source, target in pairs:
        if mirrored:
            opened = masks.read_fitted(source) if source == mask else read_rgb(source)
            write(target, png_bytes(ImageOps.mirror(opened)))
        else:
            write(target, source.read_bytes())
    return [target for _, target in pairs]


def _geometry(source: Mapping[str, Any], mirrored: bool) -> dict[str, Any]:
    """What `fit.jsonl` says of a picture's place and sizes, mirrored with it."""
    left, top, width, height = source["box"]
    if mirrored:
        left = source["bucket"][0] - left - width
    return {"box": [left, top, width, height], **{key: source[key] for key in ("bucket", "original", "corner")}}
