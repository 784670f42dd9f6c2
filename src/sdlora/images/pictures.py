"""Opening pictures of any kind as plain RGB: orientation, alpha, palette, CMYK, 16 bit, animation."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sdlora.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
MAX_PIXELS = 64_000_000
SMALLER = "that is the most that is read of any picture: save it smaller, 8000 x 8000 px at most"
BAND = 256  # rows


def open_picture(
    content: bytes, name: str, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> Image.Image:
    """Decode a picture whole, in a process with limits; of an animation, the first frame.

    Args:
        content: The file's bytes; the format is told by content, never by name.
        name: What to call it in an error.
        max_pixels: Most pixels, checked before anything is decoded.
        formats: The only formats that are tried.

    Returns:
        The upright picture, RGB or RGBA, with `format` set.

    Raises:
        DataError: If it is not a picture of `formats`, is damaged or exceeds a limit.
    """
    from sdlora.images.decoder import decode  # whose process needs this module

    return decode(content, name, max_pixels, formats, remedy=SMALLER).picture


def upright(picture: Image.Image) -> Image.Image:
    """Any picture as RGB, or as RGBA if something shows through: EXIF orientation applied, 16-bit scaled, not clipped.

    A picture that is all that already is returned itself.
    """
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # it copies a picture that stands upright as well
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        picture = _eight_bit(picture)
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def to_rgb(picture: Image.Image, matte: str = "#ffffff") -> Image.Image:
    """`upright`, with what is transparent laid on `matte`."""
    picture = upright(picture)
    if picture.mode == "RGB":
        return picture
    ground = Image.new("RGBA", picture.size, matte)
    ground.alpha_composite(picture)
    return ground.convert("RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    """A picture of one deep channel as `L`, band by band: whole, it would take several times its memory."""
    boxes = [(0, top, picture.width, min(top + BAND, picture.height)) for top in range(0, picture.height, BAND)]
    deep = picture.mode != "F" or any((np.asarray(picture.crop(box)) > 255).any() for box in boxes)
    whole = Image.new("L", picture.size)
    for box in boxes:
        values = np.asarray(picture.crop(box)).astype(np.float64) / (65535.0 if deep else 255.0)
        whole.paste(Image.fromarray(np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)), box)
    return whole


def read_rgb(path: Path) -> Image.Image:
    """A PNG that a stage wrote; in a shared dataset it may be something else, which no other decoder sees."""
    with open_png(path) as picture:
        return picture.convert("RGB")


def open_png(path: Path) -> Image.Image:
    """A PNG of the pipeline's own, decoded.

    Raises:
        DataError: If it is none, or a part of one.
    """
    try:
        picture = Image.open(path, formats=["PNG"])
        picture.load()
        return picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "no PNG" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path}: not what a stage wrote: {reason}; delete it, and it is made again") from None


def png_bytes(picture: Image.Image) -> bytes:
    """Lossless bytes, the same for the same pixels."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()
