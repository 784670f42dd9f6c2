"""Opening pictures of any kind as plain RGB: orientation, alpha, palette, CMYK, 16 bit, animation."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sdlora.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
MAX_PIXELS = 64_000_000


def open_picture(content: bytes, name: str) -> Image.Image:
    """Decode a picture whole.

    Args:
        content: The file's bytes; the format is told by content, never by name.
        name: What to call it in an error.

    Returns:
        The first frame, not yet converted, with `format` set.

    Raises:
        DataError: If it is not a picture of `FORMATS`, is damaged or has over 64 megapixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()  # AVIF is not in every build of Pillow
            picture = Image.open(io.BytesIO(content), formats=[kind for kind in FORMATS if kind in Image.OPEN])
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{name}: {picture.width} x {picture.height} px is more than {MAX_PIXELS} pixels")
            picture.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: {error}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(error).replace("<_io.BytesIO object", "<the file")
        raise DataError(f"{name}: not a readable picture: {reason}") from None
    return picture


def to_rgb(picture: Image.Image, matte: str = "#ffffff") -> Image.Image:
    """Upright RGB: EXIF orientation applied, alpha laid on `matte`, 16-bit scaled, not clipped."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(picture).astype(np.float64)
        top = 65535.0 if picture.mode != "F" or values.max(initial=0.0) > 255 else 255.0
        picture = Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, matte)
        ground.alpha_composite(picture.convert("RGBA"))
        picture = ground
    return picture.convert("RGB")


def read_rgb(path: Path) -> Image.Image:
    """A PNG that a stage wrote."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def png_bytes(picture: Image.Image) -> bytes:
    """Lossless bytes, the same for the same pixels."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()
