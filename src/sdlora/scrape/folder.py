"""Pictures that already lie in a folder."""

from collections.abc import Iterator
from pathlib import Path

from sdlora.errors import DataError
from sdlora.scrape.source import PICTURE_SUFFIXES, Candidate, ScrapeContext
from sdlora.source_section import FolderSource


def find(source: FolderSource, context: ScrapeContext) -> Iterator[Candidate]:
    """Every picture below the folder, in name order.

    Raises:
        DataError: If there is no such folder or it holds no picture.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        raise DataError(f"there is no folder {source.path!r}")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]
    if not files:
        raise DataError(f"the folder {source.path!r} holds no picture (looked for {', '.join(PICTURE_SUFFIXES)})")
    for rank, path in enumerate(files):
        yield Candidate("folder", rank, content=path.read_bytes(), name=path.relative_to(folder).as_posix())
