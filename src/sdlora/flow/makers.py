"""What makes a stage's files: the code that it can reach, its packages, and the files that it reads."""

from collections.abc import Callable, Hashable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from sdlora.flow.code import CODE_MEMORY, Code
from sdlora.flow.hashing import FileHashes
from sdlora.flow.recipe import Recipe

Found = TypeVar("Found")
# Named otherwise than imported.
DISTRIBUTIONS = {"PIL": "pillow", "ruamel": "ruamel.yaml", "skimage": "scikit-image", "yaml": "pyyaml"}


class Seen:
    """What files and code are, looked at once for all jobs."""

    def __init__(self, hashes: FileHashes | None = None, code: Code | None = None) -> None:
        self.hashes = hashes or FileHashes()
        self._code = code or Code(CODE_MEMORY)
        self._found: dict[tuple[Hashable, ...], Any] = {}
        self._makers: dict[tuple[Path, tuple[str, ...]], dict[str, Any]] = {}

    def of(self, look: Callable[..., Found], *what: Hashable) -> Found:
        """What `look(*what, hashes)` finds, looked at once: a hundred versions have one base."""
        asked = (look, *what)
        if asked not in self._found:
            self._found[asked] = look(*what, self.hashes)
        found: Found = self._found[asked]
        return found

    def maker(self, kind: type[Recipe], entries: tuple[str, ...]) -> dict[str, Any]:
        """The identity of the code that a stage can reach with some menu entries, and of the packages it imports."""
        script = kind.script_path()
        if (script, entries) not in self._makers:
            found = self._code.reach(script, entries)
            software = {name: package_version(name) for name in sorted(map(distribution, found.packages))}
            self._makers[script, entries] = {"code": found.identity, "software": software, "entries": entries}
        return self._makers[script, entries]

    def save(self) -> None:
        """Remember it for the next process."""
        self.hashes.save()
        self._code.save()


@cache
def package_version(name: str) -> str:
    """An installed package's version; `none` where it is not installed, as an optional one may be."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def distribution(package: str) -> str:
    """What a top-level import is called on the package index."""
    return DISTRIBUTIONS.get(package, package.replace("_", "-"))
