"""Fit pictures to a square: pad without losing a pixel's worth of the scene, or crop the centre."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from sdlora import records
from sdlora.params import Fit
from sdlora.pictures import open_picture, png_bytes, to_rgb

Box = tuple[int, int, int, int]
LANCZOS = Image.Resampling.LANCZOS


def pad(picture: Image.Image, size_px: int, fill: str) -> tuple[Image.Image, Box]:
    """Scale the longer side to `size_px` and fill the rest.

    Args:
        picture: RGB.
        size_px: Side of the square, px.
        fill: `edge` repeats the border pixels, `blur` repeats and blurs them, `#rrggbb` is a colour.

    Returns:
        The square and (left, top, width, height) of the picture inside it.
    """
    inner = ImageOps.contain(picture, (size_px, size_px), LANCZOS)
    left, top = (size_px - inner.width) // 2, (size_px - inner.height) // 2
    if fill in ("edge", "blur"):
        right, bottom = size_px - inner.width - left, size_px - inner.height - top
        square = Image.fromarray(np.pad(np.asarray(inner), ((top, bottom), (left, right), (0, 0)), mode="edge"))
        if fill == "blur":
            square = square.filter(ImageFilter.GaussianBlur(size_px / 32))
    else:
        square = Image.new("RGB", (size_px, size_px), fill)
    square.paste(inner, (left, top))
    return square, (left, top, inner.width, inner.height)


def center_crop(picture: Image.Image, size_px: int, fill: str) -> tuple[Image.Image, Box]:
    """Scale the shorter side to `size_px` and cut the longer one off evenly; `fill` is not needed."""
    return ImageOps.fit(picture, (size_px, size_px), LANCZOS), (0, 0, size_px, size_px)


METHODS: dict[str, Callable[[Image.Image, int, str], tuple[Image.Image, Box]]] = {
    "pad": pad,
    "center_crop": center_crop,
}


def fit_dataset(settings: Fit, source: Path, out: Path) -> list[Path]:
    """Write `<id>.png` for every picture of a manifest, and `fit.jsonl` saying where each lies.

    Args:
        settings: Method, fill and side; `size_px` must be set.
        source: Folder with `manifest.jsonl` and `raw/`.
        out: Folder to write.

    Returns:
        The files written.
    """
    if settings.size_px is None:
        raise ValueError("fit_dataset needs size_px")
    matte = settings.fill if settings.fill.startswith("#") else "#ffffff"
    rows, files = [], []
    for row in records.read_jsonl(source / "manifest.jsonl"):
        picture = to_rgb(open_picture((source / "raw" / row["file"]).read_bytes(), row["name"]), matte)
        square, box = METHODS[settings.method](picture, settings.size_px, settings.fill)
        path = out / f"{row['id']}.png"
        records.write_bytes(path, png_bytes(square))
        files.append(path)
        kept = {key: row[key] for key in ("id", "name", "sha256", "split", "caption")}
        rows.append({**kept, "file": path.name, "method": settings.method, "box": box})
    for stale in set(out.glob("*.png")) - set(files):
        stale.unlink()
    records.write_jsonl(out / "fit.jsonl", rows)
    return [out / "fit.jsonl", *files]
