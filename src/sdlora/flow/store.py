"""Finished work kept by recipe: going back to old settings publishes the old result again."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdlora.errors import DataError

STORE = Path(".sdlora/store")


def entry(kind: str, key: str) -> Path:
    """Folder of one recipe's work; using it makes it the newest."""
    folder = STORE / kind / key
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    return folder


def entries(kind: str) -> list[Path]:
    """Every entry of a kind, the most recently used first."""
    found = [p for p in (STORE / kind).glob("*") if p.is_dir()]
    return sorted(found, key=lambda p: p.stat().st_mtime_ns, reverse=True)


@contextmanager
def sole_use(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold an entry; the kernel lets go when the process dies.

    Raises:
        DataError: If another live process holds it and `wait` is false.
    """
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise DataError(f"another process is at work in {folder}; wait for it or stop it") from None
        yield


def keep_newest(kind: str, count: int) -> None:
    """Drop all but the `count` most recently used entries of a kind; what is in use stays."""
    for folder in reversed(entries(kind)[count:]):
        with suppress(DataError), sole_use(folder):
            shutil.rmtree(folder, ignore_errors=True)
