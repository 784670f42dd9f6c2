"""Modification times that Snakemake may believe: never in the future, and apart by what the file system can tell."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_FINE_NS, _SECOND_NS = 1_000_000, 1_000_000_000
_TICKS_NS = (_FINE_NS, _SECOND_NS, 2 * _SECOND_NS)  # most file systems; ext3, NFS 2 and HFS+; FAT
_ROOM_NS = 60 * _SECOND_NS  # more than all the ticks that `settle` adds, one a stage

Touch = Callable[[Path, int], None]  # sets a file's mtime, ns


def mtime_ns(path: Path) -> int:
    """When a file was changed, ns since 1970."""
    return path.stat().st_mtime_ns


def make_newer(path: Path, than_ns: int, touch: Touch) -> None:
    """Make a file newer than a time, by as little as its file system can tell apart."""
    for tick in _TICKS_NS:
        touch(path, than_ns + tick)
        if mtime_ns(path) > than_ns:
            return


def make_older(path: Path, than_ns: int, touch: Touch) -> None:
    """Make a file older than a time, by as little as its file system can tell apart."""
    for tick in _TICKS_NS:
        touch(path, than_ns - tick)
        if mtime_ns(path) < than_ns:
            return


def leave_room(paths: Iterable[Path], probe: Path, touch: Touch) -> None:
    """Set files that are newer than now a minute back: a clock was set back, or they came from another machine.

    What a job writes now would otherwise be older than its inputs, and Snakemake would throw it away. Where a
    file system tells seconds apart only, what was written in the last minute is set back as well, so that
    `make_newer` stays in the past.

    Args:
        paths: Existing files.
        probe: A file to try on what the file system keeps; it is made and deleted.
        touch: Sets a file's mtime.
    """
    now = time.time_ns()
    latest = now if _is_fine(probe) else now - _ROOM_NS
    for path in paths:
        if mtime_ns(path) > latest:
            touch(path, now - _ROOM_NS)


def _is_fine(probe: Path) -> bool:
    """Whether the file system keeps milliseconds."""
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.touch()
    try:
        os.utime(probe, ns=(_SECOND_NS + _FINE_NS,) * 2)
        return mtime_ns(probe) == _SECOND_NS + _FINE_NS
    finally:
        probe.unlink()
