"""Names that differ in case alone: to a file system such as a Mac's they are one, and so are their folders."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdlora.config.params import RESULTS_OF_ALL


def alike(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names that differ in case alone, the one that came first before the other."""
    known: dict[str, str] = {}
    for name in names:
        first = known.setdefault(name.casefold(), name)
        if first != name:
            yield first, name


def alike_in(settings: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """Such pairs among what folders or files are called by: where the later one stands, and the earlier one."""
    for section in ("versions", "datasets", "bases"):
        names = settings.get(section)
        reserved: Iterable[str] = RESULTS_OF_ALL if section == "versions" else ()
        for first, name in alike([*reserved, *names] if isinstance(names, Mapping) else ()):
            yield (section, name), first


def is_blind_to_case(file: Path) -> bool:
    """Whether to the file system of a file, which is there, names that differ in case alone are one."""
    other = file.with_name(file.name.swapcase())
    return other != file and other.exists() and other.samefile(file)
