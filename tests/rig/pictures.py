"""As many different pictures as a test wants, made from the embedded ones."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdlora.images.pictures import open_picture, to_rgb

EMBEDDED = Path(__file__).parents[2] / "data" / "embedded"
FORMATS = ("JPEG", "PNG", "WEBP")


@cache
def picture(number: int, side_px: int = 256) -> bytes:
    """The bytes of picture `number`: four embedded ones in a square, turned, mirrored and re-coloured.

    The same number gives the same bytes; two numbers give pictures that nobody would take for one another.
    Every third is a JPEG, a PNG or a WebP.
    """
    files = _files()
    random = np.random.default_rng(number)
    half = side_px // 2
    whole = Image.new("RGB", (side_px, side_px))
    for corner, file in enumerate(random.choice(len(files), 4, replace=False)):
        with Image.open(files[file]) as opened:
            part = opened.convert("RGB").resize((half, half), Image.Resampling.BILINEAR)
        part = part.transpose(Image.Transpose(int(random.integers(0, 7))))
        pixels = np.asarray(part)[..., random.permutation(3)]
        pixels = 255 - pixels if random.random() < 0.5 else pixels
        whole.paste(Image.fromarray(np.ascontiguousarray(pixels)), (half * (corner % 2), half * (corner // 2)))
    buffer = io.BytesIO()
    whole.save(buffer, FORMATS[number % len(FORMATS)])
    return buffer.getvalue()


@cache
def _files() -> tuple[Path, ...]:
    return tuple(sorted(EMBEDDED.rglob("*.png")))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(number: int) -> Image.Image:
    return to_rgb(open_picture(picture(number), "rig"))
