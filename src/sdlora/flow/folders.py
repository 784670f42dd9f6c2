"""Everything that lies in a user's folder: each file once, with what keeps it from being read."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora.flow.hashing import FileHashes, hash_or_why_not, printable, sha256_text


@dataclass(frozen=True)
class Found:
    """A file below a folder, or a folder or link that is not followed."""

    path: Path
    problem: str | None = None  # why it is not read

    @property
    def is_hidden(self) -> bool:
        """Whether its name begins with a dot: such files belong to programs."""
        return self.path.name.startswith(".")


def walk(folder: Path) -> list[Found]:
    """All that lies below a folder, by path; links to folders are followed, each folder once.

    What is hidden is named and not looked into.
    """
    return sorted(_below(folder), key=lambda one: one.path)


def has_files(folder: Path) -> bool:
    """Whether anything below a folder is not hidden; looks no further than to the first."""
    return any(not one.is_hidden for one in _below(folder))


def _below(folder: Path) -> Iterator[Found]:
    seen: dict[tuple[int, int], Path] = {}
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            known = seen.setdefault(_identity(place), place)
            if known != place:
                yield Found(place, f"the same folder as {printable(known.relative_to(folder)) or '.'}")
                continue
            entries = list(os.scandir(place))
        except OSError as error:
            yield Found(place, f"a folder that cannot be read: {error.strerror}")
            continue
        for entry in entries:
            path = place / entry.name
            problem = _problem(entry)
            if problem is None and entry.is_dir():
                waiting.append(path)
            else:
                yield Found(path, problem)
        waiting.sort(reverse=True)


def _identity(place: Path) -> tuple[int, int]:
    found = place.stat()
    return found.st_dev, found.st_ino


def _problem(entry: os.DirEntry[str]) -> str | None:
    if entry.name.startswith("."):
        return "hidden: its name begins with a dot"
    try:
        if entry.is_dir() or entry.is_file():
            return None if _is_text(entry.name) else "its name is not UTF-8; rename it"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return "a link that leads nowhere" if entry.is_symlink() else "no regular file"


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def identity(folder: Path, hashes: FileHashes, suffixes: Sequence[str] | None = None) -> str:
    """One hash for the names and bytes of all that is not hidden below a folder, or of one file.

    Args:
        folder: Links in it are followed, as by who reads it.
        hashes: Of files.
        suffixes: Of the only files that count; None counts all.
    """
    found = [Found(folder)] if folder.is_file() else walk(folder)
    files = [one for one in found if not one.is_hidden and (suffixes is None or one.path.suffix.lower() in suffixes)]
    return sha256_text(
        "\n".join(
            f"{printable(one.path.relative_to(folder))} {one.problem or hash_or_why_not(one.path, hashes)}"
            for one in files
        )
    )
