"""What every picture source yields."""

from dataclasses import dataclass

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


@dataclass(frozen=True)
class FoundImage:
    """One candidate: its bytes and where they come from."""

    content: bytes
    name: str  # path inside the source, or the picture's URL
    engine: str  # folder, bing, selenium or hub
    query: str | None = None
    page_url: str | None = None
    licence: str | None = None
    caption: str | None = None
