"""Small pictures inside a page, each once however often it is shown."""

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image

from sdlora.images.pictures import read_rgb

THUMBNAIL_PX = 128  # longer side; the picture itself is linked
QUALITY = 88  # of WebP


class Thumbnails:
    """WebP by name, as the page has them (step 0 is the same for many versions)."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._keys: dict[Path, str] = {}

    def key(self, path: Path) -> str:
        """The name under which a stage's picture stands in the page."""
        if path not in self._keys:
            self._keys[path] = self.add(read_rgb(path))
        return self._keys[path]

    def add(self, picture: Image.Image, side_px: int = THUMBNAIL_PX) -> str:
        """The name under which any picture stands in the page.

        Args:
            picture: RGB or RGBA.
            side_px: The longer side, at most.
        """
        small = _small(picture, side_px)
        key = hashlib.sha256(small).hexdigest()[:16]
        self.found[key] = f"data:image/webp;base64,{base64.b64encode(small).decode()}"
        return key


def _small(picture: Image.Image, side_px: int) -> bytes:
    if max(picture.size) > side_px:
        picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "webp", quality=QUALITY, method=6)
    return buffer.getvalue()
