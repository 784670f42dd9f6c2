"""Content hashes of files and folders, remembered by (mtime, size)."""

import hashlib
import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdlora import records

PRIVATE = Path(".sdlora")  # what sdlora keeps and remembers of a project


class FileHashes:
    """sha256 of files, remembered by (mtime, size) in `.sdlora/hashes.json`."""

    def __init__(self, path: Path = PRIVATE / "hashes.json") -> None:
        self._path = path
        self._known: dict[str, tuple[int, int, str]] = _remembered(path)
        self._changed = False

    def of(self, path: Path) -> str:
        """The file's sha256 in hex."""
        found = path.stat()
        known = self._known.get(printable(path))
        if known and known[:2] == (found.st_mtime_ns, found.st_size):
            return known[2]
        _to_disk(path)
        digest = sha256_of(path)
        self._remember(path, digest)
        return digest

    def touch(self, path: Path, time_ns: int) -> None:
        """Set a file's mtime without forgetting its hash."""
        known = self._known.get(printable(path))
        before = path.stat()
        os.utime(path, ns=(time_ns, time_ns))
        if known and known[:2] == (before.st_mtime_ns, before.st_size):
            self._remember(path, known[2])

    def _remember(self, path: Path, digest: str) -> None:
        found = path.stat()
        self._known[printable(path)] = (found.st_mtime_ns, found.st_size, digest)
        self._changed = True

    def save(self) -> None:
        """Write what was learnt, without the files that are gone; where that is not allowed, it is learnt again."""
        if self._changed:
            kept = {name: row for name, row in self._known.items() if Path(name).exists()}
            with suppress(OSError):
                records.write_json(self._path, kept)


def _to_disk(path: Path) -> None:
    """Have a file's bytes on the disk before its hash is remembered.

    After a power cut, a file that lost its end may keep its time and size, and a remembered hash would speak for it.
    """
    with path.open("rb") as file, suppress(OSError):  # some file systems sync nothing that was opened to read
        os.fsync(file.fileno())


def _remembered(path: Path) -> dict[str, tuple[int, int, str]]:
    """The rows of a file of hashes; what is no such row was damaged and is left out."""
    found = read_regular(path)
    rows = found.items() if isinstance(found, dict) else ()
    return {name: (row[0], row[1], row[2]) for name, row in rows if _is_hash_row(row)}


def _is_hash_row(row: Any) -> bool:
    return isinstance(row, list) and [type(value) for value in row] == [int, int, str]


def read_regular(path: Path) -> Any:
    """The value of a JSON file; None if it is absent, or is no regular file or damaged, which stderr is told."""
    if not path.exists():
        return None
    if not is_regular(path):
        print(f"note: {path} is no regular file; going on as if it were not there", file=sys.stderr)
        return None
    try:
        return records.read_json(path)
    except (ValueError, OSError) as error:
        print(f"note: {path} is damaged ({error}); going on as if it were not there", file=sys.stderr)
        return None


def is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def printable(path: Path) -> str:
    """A path as text that any file can hold: bytes of a name that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def are_whole(folder: Path, digests: Mapping[str, str]) -> bool:
    """Whether files below a folder are there, with the bytes that their hashes say."""
    return all(is_regular(folder / name) and sha256_of(folder / name) == digest for name, digest in digests.items())


def sha256_text(text: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def hash_or_why_not(path: Path, hashes: FileHashes) -> str:
    """A file's hash; the stage that needs the file says that it cannot be read, here it only differs from others."""
    try:
        return hashes.of(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"
