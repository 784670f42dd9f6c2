"""Finished work kept by recipe: going back to old settings publishes the old result again."""

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from sdlora import records
from sdlora.errors import DataError
from sdlora.flow.hashing import sha256_of

STORE = Path(".sdlora/store")
KEPT_DAYS = 30  # that a file which lies nowhere else is kept after the last job asked for it
LOCK = "lock"  # the file of an entry that whoever is at work there holds


def entry(kind: str, key: str) -> Path:
    """Folder of one recipe's work; using it makes it the newest."""
    folder = STORE / kind / key
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):  # another process drops it just now: `sole_use` makes it anew
        os.utime(folder)
    return folder


def entries(kind: str) -> list[Path]:
    """Every entry of a kind, the most recently used first."""
    used = {}
    for folder in (STORE / kind).glob("*"):
        with suppress(FileNotFoundError):  # another process drops it just now
            found = folder.stat()
            if stat.S_ISDIR(found.st_mode):
                used[folder] = found.st_mtime_ns
    return sorted(used, key=lambda folder: used[folder], reverse=True)


@contextmanager
def sole_use(folder: Path, wait: bool = False) -> Iterator[int]:
    """Hold an entry; the kernel lets go when the process dies, and those that were given the open file.

    Args:
        wait: Until another live process lets go of it, which is said. An entry that it deleted is there again, empty.

    Yields:
        The open file's descriptor.

    Raises:
        DataError: If another live process holds it, or has deleted it, and `wait` is false.
    """
    while True:
        with _opened(folder, wait) as handle:
            _hold(handle, folder, wait)
            if _is_at(folder / LOCK, handle):  # else the file that was waited for was deleted: it guards nothing
                yield handle.fileno()
                return


def _opened(folder: Path, wait: bool) -> TextIO:
    while True:
        if wait:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            return (folder / LOCK).open("w")
        except FileNotFoundError:  # `keep_newest` of another process may be faster than this one
            if not wait:
                raise DataError(f"another process has deleted {folder}") from None


def _hold(handle: TextIO, folder: Path, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise DataError(f"another process is at work in {folder}; wait for it or stop it") from None
        print(f"waiting for another process that is at work in {folder}", flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)


def _is_at(path: Path, handle: TextIO) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False


def keep_newest(kind: str, count: int, done: str | None = None) -> None:
    """Drop all but the `count` most recently used entries of a kind; what is in use stays.

    Args:
        kind: Of the entries.
        count: How many stay.
        done: A file that a finished entry has. Others are no part of the count: they wait to be gone on with, and stay
            as long as a file that lies nowhere else.
    """
    found = entries(kind)
    finished = [folder for folder in found if done is None or (folder / done).exists()]
    waiting = [folder for folder in found if folder not in finished]
    oldest = time.time() - KEPT_DAYS * 86_400
    left = [folder for folder in waiting if _used(folder) < oldest]
    for folder in reversed([*finished[count:], *left]):
        with suppress(DataError), sole_use(folder):
            delete(folder)


def _used(folder: Path) -> float:
    """When an entry was used last, in seconds since 1970; now, if another process has just dropped it."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def delete(folder: Path) -> None:
    """Delete an entry that is held, its lock last: until then nobody else can be at work in it."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            with suppress(OSError):
                path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def keep(kind: str, files: Sequence[Path]) -> list[str]:
    """Put files into the store under their content's hash, without a second copy where the disk has hard links.

    Returns:
        Their hashes, by which `bring_back` finds them.
    """
    return [_keep(STORE / kind, path) for path in files]


def _keep(folder: Path, path: Path) -> str:
    digest = sha256_of(path)
    link(path, folder / digest)
    return digest


def bring_back(kind: str, digests: Sequence[str], targets: Sequence[Path]) -> bool:
    """Put kept files where they belong.

    Returns:
        False if one of them is not in the store as it was; then nothing was changed.
    """
    kept = [STORE / kind / digest for digest in digests]
    if len(kept) != len(targets) or any(not p.is_file() or sha256_of(p) != p.name for p in kept):
        return False
    for source, target in zip(kept, targets, strict=True):
        take(source, target)
    return True


def take(source: Path, target: Path) -> None:
    """Put a kept file where it belongs; it has been asked for."""
    link(source, target)
    os.utime(source)


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy of it where that cannot be; whole or not at all."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = records.part_of(target)
    try:
        os.link(source, part)
    except OSError:  # another disk, or one without hard links
        records.write_bytes(target, source.read_bytes())
    else:
        part.replace(target)


def drop_unused(folder: Path) -> None:
    """Delete kept files that lie nowhere else and that nobody asked for in `KEPT_DAYS`."""
    oldest = time.time() - KEPT_DAYS * 24 * 60 * 60
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # another job may have been faster
            found = path.stat()
            if found.st_nlink == 1 and found.st_mtime < oldest:
                path.unlink()
