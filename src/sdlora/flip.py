"""Mirror pictures: both orientations as files, so that each is encoded; the draw is made in training."""

import re
from pathlib import Path

from PIL import ImageOps

from sdlora import records
from sdlora.pictures import png_bytes, read_rgb

_OTHER = {"left": "right", "right": "left"}


def swap_left_right(caption: str) -> str:
    """'small, on the left' -> 'small, on the right', in any case."""

    def other(match: re.Match[str]) -> str:
        word = match.group()
        swapped = _OTHER[word.lower()]
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    return re.sub(r"\b(left|right)\b", other, caption, flags=re.IGNORECASE)


def flip_dataset(folder: Path, mirror: bool, swap_words: bool) -> list[Path]:
    """Write `train/` in Hugging Face's ImageFolder layout: pictures, mirrored pictures, `metadata.jsonl`.

    Args:
        folder: Fitted pictures with `captions.jsonl`.
        mirror: Whether mirrored copies are made.
        swap_words: Whether left and right change places in a mirrored picture's caption.

    Returns:
        The files written.
    """
    train = folder / "train"
    rows, files = [], []
    for row in records.read_jsonl(folder / "captions.jsonl"):
        if row["split"] != "train":
            continue
        picture = read_rgb(folder / f"{row['id']}.png")
        for mirrored in (False, True) if mirror else (False,):
            path = train / (f"{row['id']}.flip.png" if mirrored else f"{row['id']}.png")
            text = swap_left_right(row["caption"]) if mirrored and swap_words else row["caption"]
            records.write_bytes(path, png_bytes(ImageOps.mirror(picture) if mirrored else picture))
            rows.append({"file_name": path.name, "text": text, "id": row["id"], "mirrored": mirrored})
            files.append(path)
    for stale in set(train.glob("*.png")) - set(files):
        stale.unlink()
    records.write_jsonl(train / "metadata.jsonl", rows)
    return [train / "metadata.jsonl", *files]
