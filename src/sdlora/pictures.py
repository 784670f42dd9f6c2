"""Opening pictures of any kind as plain RGB: orientation, alpha, palette, CMYK, 16 bit, animation."""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sdlora.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
MAX_PIXELS = 64_000_000
_warnings_lock = threading.Lock()  # what is done about warnings is the whole process's


def open_picture(
    content: bytes, name: str, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> Image.Image:
    """Decode a picture whole; of an animation, the first frame.

    Args:
        content: The file's bytes; the format is told by content, never by name.
        name: What to call it in an error.
        max_pixels: Most pixels, checked before anything is decoded.
        formats: The only formats that are tried.

    Returns:
        The picture, not yet converted, with `format` set.

    Raises:
        DataError: If it is not a picture of `formats`, is damaged or has more pixels.
    """
    picture = identify(content, name, max_pixels, formats)
    with _told(name):
        picture.load()
    return picture


def identify(content: bytes, name: str, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS) -> Image.Image:
    """A picture whose format and size are known and nothing else: the first half of `open_picture`.

    Raises:
        DataError: If it is not a picture of `formats` or has more pixels.
    """
    try:
        with _told(name), _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()  # AVIF is not in every build of Pillow
            picture = Image.open(io.BytesIO(content), formats=[kind for kind in formats if kind in Image.OPEN])
    except UnidentifiedImageError:  # its own text holds a memory address
        reason = f"none of {', '.join(formats)}" if content else "no bytes"
        raise DataError(f"{name}: not a readable picture: {reason}") from None
    if picture.width * picture.height > max_pixels:
        raise DataError(f"{name}: {picture.width} x {picture.height} px is more than {max_pixels} pixels")
    return picture


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Every way in which Pillow says that a file is no good, as one error."""
    try:
        yield
    except UnidentifiedImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{name}: not a readable picture: {error}") from None


def to_rgb(picture: Image.Image, matte: str = "#ffffff") -> Image.Image:
    """Upright RGB: EXIF orientation applied, alpha laid on `matte`, 16-bit scaled, not clipped.

    A picture that is all that already is returned itself.
    """
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # it copies a picture that stands upright as well
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(picture).astype(np.float64)
        top = 65535.0 if picture.mode != "F" or values.max(initial=0.0) > 255 else 255.0
        picture = Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, matte)
        ground.alpha_composite(picture if picture.mode == "RGBA" else picture.convert("RGBA"))
        picture = ground
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def read_rgb(path: Path) -> Image.Image:
    """A PNG that a stage wrote."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def png_bytes(picture: Image.Image) -> bytes:
    """Lossless bytes, the same for the same pixels."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()
