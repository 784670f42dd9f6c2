"""What a power cut leaves of a file that was renamed into place before its content was on the disk."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def empty(path: Path) -> None:
    """Its name, and length zero."""
    _put(path, b"")


def zeros(path: Path) -> None:
    """Its name, length and time, and zero bytes from the middle on."""
    content = path.read_bytes()
    _put(path, content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def gone(path: Path) -> None:
    """Nothing: the rename itself is not on the disk."""
    path.unlink()


def synced_inodes(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Which files are put on the disk from now on, and so outlast a cut."""
    found, sync = set(), os.fsync

    def noted(descriptor: int) -> None:
        sync(descriptor)
        found.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    return found


CUTS: dict[str, Callable[[Path], None]] = {"empty": empty, "zeros": zeros, "gone": gone}


def _put(path: Path, content: bytes) -> None:
    """Replace a file and keep its time; other names of the old one, such as links in a copy, keep what they have."""
    found = path.stat()
    part = path.with_name(f"{path.name}.cut")
    part.write_bytes(content)
    os.utime(part, ns=(found.st_atime_ns, found.st_mtime_ns))
    part.replace(path)
