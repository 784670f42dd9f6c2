"""A small dataset made by the real stages: a few pictures fitted, captioned by hand, mirrored and encoded."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
from helpers import ROOT, SMALL, TINY
from PIL import Image

from sdlora import records
from sdlora.config.load import load
from sdlora.config.params import Encode, Fit, Params
from sdlora.images.pictures import png_bytes
from sdlora.stages.encode.encode import encode_dataset
from sdlora.stages.encode.recipe import EncodeRecipe
from sdlora.stages.fit.fit import fit_dataset
from sdlora.stages.flip.flip import flip_dataset
from sdlora.stages.train.dataset import Example, load_examples

CAPTION = "captain, black coat on the left, smile mouth, lavender background"
ENCODE = EncodeRecipe(
    wildcards={"base": "tiny"}, encode=Encode(), base=TINY, base_identity="sha256:tiny", threads=1, code="x"
)


def captain(number: int, size: tuple[int, int] = (112, 64)) -> Image.Image:
    """An embedded picture at another size."""
    with Image.open(ROOT / "data/embedded/captain/train" / f"{number:03d}.png") as picture:
        return picture.convert("RGB").resize(size)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def picture_id(number: int) -> str:
    """The id of a set's n-th picture: of the form that a scrape writes."""
    return f"{number:016x}"


def write_manifest(source: Path, pictures: Mapping[str, Image.Image], split: str = "train") -> None:
    """`raw/` and `manifest.jsonl`; the ids are `picture_id(0)`, `picture_id(1)`, …"""
    rows = []
    for number, (name, picture) in enumerate(pictures.items()):
        content = png_bytes(picture)
        file = f"{hashlib.sha256(content).hexdigest()}.png"
        records.write_bytes(source / "raw" / file, content)
        row = {
            "id": picture_id(number),
            "name": name,
            "file": file,
            "sha256": file[:-4],
            "split": split,
            "caption": None,
        }
        rows.append(row)
    records.write_jsonl(source / "manifest.jsonl", rows)


def make_set(
    source: Path,
    pictures: Mapping[str, Image.Image],
    fit: Fit | None = None,
    masks: str | None = None,
    mirror: bool = True,
    repeats: Any = None,
    captions: Sequence[str] | None = None,
    encode: bool = True,
) -> Path:
    """Run fit, flip and encode; returns the folder of the fitted set."""
    write_manifest(source, pictures)
    folder = source / "fitted"
    with chdir(source):  # where the store lies
        fit_dataset(fit or Fit(size_px=64), source, folder, masks)
        texts = captions or [CAPTION] * len(pictures)
        rows = [{"id": picture_id(n), "caption": text, "origin": "-", "split": "train"} for n, text in enumerate(texts)]
        records.write_jsonl(folder / "captions.jsonl", rows)
        flip_dataset(folder, mirror, True, repeats)
        if encode:
            encode_dataset(ENCODE, folder)
    return folder


def examples_of(folder: Path, cache: str = "disk") -> list[Example]:
    return load_examples(folder, "tiny", cache)


def edited(folder: Path, *changes: tuple[str, str], text: str = SMALL) -> Params:
    """The tests' small settings, read after changes of their text; `folder` gets the code and the models."""
    for before, after in changes:
        assert before in text
        text = text.replace(before, after, 1)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    for name in ("models", "workflow"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return load(folder / "params.yaml")
