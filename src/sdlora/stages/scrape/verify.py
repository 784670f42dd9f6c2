"""What a file's content is: format, size, and the marks that tell copies of one picture."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from sdlora.config.sources import Scrape
from sdlora.images.decoder import SECONDS, decode
from sdlora.images.pictures import FORMATS, MAX_PIXELS, SMALLER

# What a browser shows: a search result of another kind (TIFF, ICNS, PSD, ...) is no picture for us.
WEB_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
HASH_SIDE = 8
THUMBNAIL = HASH_SIDE * (HASH_SIDE + 1)  # whole areas for both marks
SAME_COLOURS = 6.0  # root of the mean squared difference of two 8 x 8 thumbnails, of 255


@dataclass(frozen=True)
class Look:
    """What is known of a picture that could be decoded whole."""

    format: str
    width_px: int
    height_px: int
    dhash: str  # 128 bits in hex
    colours: str  # 8 x 8 RGB thumbnail in hex

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width_px * self.height_px

    def bits_from(self, other: "Look") -> int:
        """How many bits of the two dHashes differ."""
        return (int(self.dhash, 16) ^ int(other.dhash, 16)).bit_count()

    def same_as(self, other: "Look", bits: int) -> bool:
        """Whether two files show one picture, re-encoded or resized.

        dHash sees shapes only; flat drawings that differ in colour share it. So the colours must agree as well.
        """
        if self.bits_from(other) > bits:
            return False
        mine, theirs = (np.frombuffer(bytes.fromhex(look.colours), np.uint8).astype(float) for look in (self, other))
        return bool(np.sqrt(np.mean((mine - theirs) ** 2)) <= SAME_COLOURS)


def examine(content: bytes, name: str, limits: Scrape | None) -> Look:
    """Decode a picture whole and look at it.

    Args:
        content: The file's bytes.
        name: What to call it in an error.
        limits: Of what a search may bring; None for a picture that somebody chose.

    Raises:
        DataError: If it is no picture, is damaged, or exceeds a limit.
    """
    if limits is None:
        found = decode(content, name, MAX_PIXELS, FORMATS, THUMBNAIL, remedy=SMALLER)
    else:
        found = decode(
            content, name, int(limits.max_megapixels * 1e6), WEB_FORMATS, THUMBNAIL,
            min(limits.deadline_s, SECONDS), "the limit is scrape.max_megapixels",
        )  # fmt: skip
    return Look(found.format, *found.size, dhash(found.picture), colours(found.picture))


def dhash(thumbnail: Image.Image) -> str:
    """Difference hash: is each of 8 x 8 areas brighter than its left and its upper neighbour? 128 bits in hex.

    Source: N. Krawetz, "Kind of Like That" (2013); both directions as in B. Hoyt's dhash.
    """
    side = HASH_SIDE + 1
    grey = np.asarray(thumbnail.convert("L").resize((side, side), Image.Resampling.BOX), dtype=np.int16)
    across, down = grey[:-1, 1:] > grey[:-1, :-1], grey[1:, :-1] > grey[:-1, :-1]
    return np.packbits(np.concatenate([across.ravel(), down.ravel()])).tobytes().hex()


def colours(thumbnail: Image.Image) -> str:
    """An 8 x 8 thumbnail, RGB bytes in hex."""
    return thumbnail.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX).tobytes().hex()
