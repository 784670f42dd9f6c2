"""What the commands that the tests' server runs inherit from it: sdlora's modules, and memory that is cheap to fork."""

import ctypes
import hashlib
import importlib
import os
import pickle
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import FileFinder
from pathlib import Path

#: What only says when, how often and how fast a training steps: no prediction of its memory reads it.
NOT_OF_MEMORY = {"seed", "steps", "checkpoint_every", "lr_schedule", "lr_stages", "lr_warmup_steps"}


def forget(*packages: str) -> None:
    """Have packages imported anew by who imports them next."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


class Sdlora:
    """All modules of this repository's sdlora, and its files, for the projects that have the same."""

    def __init__(self, source: Path) -> None:
        """Import them, from a folder that is on the path."""
        import sdlora
        from sdlora.flow import code
        from sdlora.stages.evaluate import effnet

        for module in pkgutil.walk_packages(sdlora.__path__, "sdlora."):
            importlib.import_module(module.name)
        self._source = source
        self._files: dict[str, tuple[tuple[int, int], bytes]] = {}
        for name in _names(source):
            state, content = (source / name).stat(), (source / name).read_bytes()
            self._files[name] = (state.st_size, state.st_mtime_ns), content
        self._modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "sdlora"]
        # a fork copies what it looks at: these are found before
        self._paths = [
            (module, name, value.relative_to(source))
            for module in self._modules
            for name, value in vars(module).items()
            if isinstance(value, Path) and value.is_relative_to(source)
        ]
        effnet._network()  # it keeps it
        code._parse = cache(code._parse)  # what a file says depends on its bytes alone
        for name, (_, content) in self._files.items():
            if name.endswith(".py"):
                code._parse(content)

    def choose(self) -> None:
        """Keep the modules as what the path's sdlora would become; forget them where a file of it is another one."""
        paths = [Path(path).absolute() for path in sys.path]
        source = next((path for path in paths if (path / "sdlora/__init__.py").is_file()), None)
        if source is None or "sdlora" not in sys.modules or not self._are_in(source):
            forget("sdlora")
            return
        for module in self._modules:
            module.__file__ = f"{source}{str(module.__file__)[len(str(self._source)) :]}"
        for module, name, below in self._paths:
            setattr(module, name, source / below)

    def _are_in(self, source: Path) -> bool:
        """Whether a folder has the same files; those of the same size and time are not read."""
        if _names(source) != self._files.keys():
            return False
        for name, (state, content) in self._files.items():
            found = (source / name).stat()
            if (found.st_size, found.st_mtime_ns) != state and (source / name).read_bytes() != content:
                return False
        return True


def _names(source: Path) -> set[str]:
    """The files of the sdlora below a folder, by their paths there."""
    found = set()
    for folder, folders, names in os.walk(source / "sdlora"):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {f"{folder[len(str(source)) + 1 :]}/{name}" for name in names}
    return found


def predict_once(folder: Path) -> None:
    """Have trainings' memory predicted once a run, whichever job asks: it takes more than their four steps.

    Args:
        folder: Of the predictions, for all jobs whose sdlora is this repository's. A prediction reads a training's
            settings and its base's configs; of a base with another's VAE, or that is no folder, none is kept.
    """
    if (preflight := sys.modules.get("sdlora.memory.preflight")) is None:
        return
    plain = preflight.predict

    def predict(settings, base, demand, device, on=None):  # type: ignore[no-untyped-def]
        configs = sorted(Path(base.model).glob("**/*.json"))
        if base.vae or not configs:
            return plain(settings, base, demand, device, on)
        names = [str(path.relative_to(base.model)) for path in configs]
        words = settings.model_dump_json(exclude=NOT_OF_MEMORY), base.model_dump_json(exclude={"model"})
        asked = hashlib.sha256(repr((words, names, demand, device, on)).encode())
        for path in configs:
            asked.update(path.read_bytes())
        kept = folder / asked.hexdigest()
        if not kept.exists():
            found = plain(settings, base, demand, device, on)
            kept.with_suffix(f".{os.getpid()}").write_bytes(pickle.dumps(found))
            kept.with_suffix(f".{os.getpid()}").rename(kept)
        return pickle.loads(kept.read_bytes())

    preflight.predict = predict  # type: ignore[attr-defined]


def list_libraries() -> None:
    """List the path's folders for those who look for plugins in all of them, as Snakemake does for each kind."""
    plain = pkgutil._iter_file_finder_modules  # type: ignore[attr-defined]
    finders = [found for path in sys.path if isinstance(found := pkgutil.get_importer(path), FileFinder)]
    listed = {finder.path: [*plain(finder)] for finder in finders}

    def modules_in(finder: FileFinder, prefix: str = "") -> Iterator[tuple[str, bool]]:
        if finder.path not in listed:
            yield from plain(finder, prefix)
        for name, is_package in listed.get(finder.path, ()):
            yield prefix + name, is_package

    pkgutil.iter_importer_modules.register(FileFinder, modules_in)  # type: ignore[attr-defined]


def in_large_pages() -> None:
    """Have what forks inherit in pages of 2 MiB: the tables that each copies and drops are then a hundredth."""
    large, collapse = 2**21, 25  # MADV_COLLAPSE, of Linux 6.1; elsewhere it fails, and pages stay small
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text().splitlines() if sys.platform == "linux" else ():
        place, rights, _, _, inode, *name = line.split()
        first, end = (int(number, 16) for number in place.split("-"))
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            for start in range(-(-first // large) * large, end - large + 1, large):
                madvise(start, large, collapse)
