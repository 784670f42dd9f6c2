"""What made a file: content hashes, code hashes, and mtimes that tell the truth.

Every job reads one recipe (its settings and the identity of its code) and ends by writing one
record, its `made` file: the recipe's hash, the identity of each input and the hash of each output.
`settle` compares the records with the files before Snakemake looks, and sets mtimes so that
Snakemake's own rule, "an input is newer", is right after a clone, a checkout or a pull as well.
"""

import ast
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import kohya_set, records

STORE = Path(".sdlora")
PACKAGE = Path(__file__).parent
_TICK_NS = 1_000_000  # apart enough for every file system's clock
# Modules whose behaviour reaches a stage only through its recipe (plan.py resolves what they decide), or never.
_NOT_CODE = {
    "params", "sections", "source_section", "train_section", "settings", "errors", "plan", "inputs", "provenance",
    "command", "choices",
}  # fmt: skip
# Modules that may refuse a training but never change what it writes.
_ONLY_REFUSE = {"train/preflight.py", "train/prediction.py", "train/memory.py"}


@dataclass(frozen=True)
class Job:
    """One run of one stage: what Snakemake sees as a job."""

    stage: str
    name: str
    recipe: dict[str, Any]
    inputs: tuple[Path, ...]  # made files of the jobs before it
    made: Path
    shown: tuple[Path, ...] = ()  # outputs that Snakemake declares beside the made file

    @property
    def recipe_path(self) -> Path:
        return STORE / "recipes" / self.stage / f"{self.name}.json"


class FileHashes:
    """sha256 of files, remembered by (mtime, size) in `.sdlora/hashes.json`."""

    def __init__(self, path: Path = STORE / "hashes.json") -> None:
        self._path = path
        self._known: dict[str, list[Any]] = records.read_json(path) if path.exists() else {}
        self._changed = False

    def of(self, path: Path) -> str:
        """The file's sha256 in hex."""
        stat = path.stat()
        known = self._known.get(str(path))
        if known and known[:2] == [stat.st_mtime_ns, stat.st_size]:
            return str(known[2])
        digest = sha256_of(path)
        self._known[str(path)] = [stat.st_mtime_ns, stat.st_size, digest]
        self._changed = True
        return digest

    def touch(self, path: Path, time_ns: int) -> None:
        """Set a file's mtime without forgetting its hash."""
        digest = self.of(path)
        os.utime(path, ns=(time_ns, time_ns))
        stat = path.stat()
        self._known[str(path)] = [stat.st_mtime_ns, stat.st_size, digest]
        self._changed = True

    def save(self) -> None:
        """Write what was learnt, without the files that are gone."""
        if self._changed:
            kept = {name: row for name, row in self._known.items() if Path(name).exists()}
            records.write_json(self._path, kept)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def identity_of_folder(folder: Path, suffixes: Sequence[str], hashes: FileHashes) -> str:
    """One hash for the names and bytes of the files of some kinds below a folder (or of one file)."""
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    kept = [p for p in files if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    return sha256_text("\n".join(f"{p.relative_to(folder)} {hashes.of(p)}" for p in kept))


def code_of(stage: str, script: Path) -> str:
    """Identity of a stage's code: its script and every sdlora module it can reach.

    Comments, docstrings and layout do not count.
    """
    start = PACKAGE / stage if (PACKAGE / stage).is_dir() else PACKAGE / f"{stage}.py"
    waiting, seen = [*_files_of(start), script], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.exists() or path.as_posix().endswith(tuple(_ONLY_REFUSE)):
            continue
        seen.add(path)
        waiting += _imports_of(path)
    parts = [f"{path.name} {_meaning_of(path)}" for path in sorted(seen)]
    return sha256_text("\n".join(parts))[:16]


def _files_of(path: Path) -> list[Path]:
    return sorted([*path.rglob("*.py"), *path.rglob("*.html")]) if path.is_dir() else [path]


_parsed: dict[Path, ast.Module] = {}


def _tree_of(path: Path) -> ast.Module:
    if path not in _parsed:
        _parsed[path] = ast.parse(path.read_text("utf-8"))
    return _parsed[path]


def _imports_of(path: Path) -> list[Path]:
    found: list[Path] = []
    if path.suffix != ".py":
        return found
    for node in ast.walk(_tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sdlora":
            inside = node.module.split(".")[1:]
            names = [inside, *([*inside, alias.name] for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1:] for alias in node.names if alias.name.startswith("sdlora.")]
        else:
            continue
        for parts in names:
            if parts and parts[0] not in _NOT_CODE:
                place = PACKAGE.joinpath(*parts)
                found += _files_of(place) if place.is_dir() else [place.with_suffix(".py")]
    return found


def _meaning_of(path: Path) -> str:
    if path.suffix != ".py":
        return sha256_of(path)
    tree = _tree_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            first = body[0] if body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = body[1:]
    return sha256_text(ast.dump(tree))


def outputs_identity(made: Path) -> str:
    """One hash for everything a job wrote that the jobs after it read: not the set for kohya's trainer."""
    outputs: dict[str, str] = records.read_json(made)["outputs"]
    unread = f"{(made.parent.parent / kohya_set.FOLDER).as_posix()}/"
    read = {path: digest for path, digest in outputs.items() if not path.startswith(unread)}
    return sha256_text(records.canonical_json(read))


def write_made(made: Path, recipe: str, inputs: Sequence[Path], outputs: Iterable[Path]) -> None:
    """Record what made a job's files; written last, so its presence means the job is whole.

    `recipe` is the text the job read at its start: the file may have changed since.
    """
    records.write_json(
        made,
        {
            "recipe": sha256_text(recipe),
            "inputs": {str(path): outputs_identity(path) for path in inputs},
            "outputs": {str(path): sha256_of(path) for path in sorted(outputs)},
        },
    )


def settle(jobs: Sequence[Job]) -> list[Job]:
    """Make recipes current and mtimes truthful; `jobs` must be in topological order.

    A job is fresh when its record fits its recipe, its inputs (fresh themselves) and its files.
    A fresh job's outputs are made at least as new as its inputs; the recipe of one that is not
    fresh is made newer than its outputs, so that Snakemake runs it.

    Returns:
        The jobs that are fresh.
    """
    hashes = FileHashes()
    fresh: dict[Path, Job] = {}
    for job in jobs:
        text = records.canonical_json(job.recipe)
        path = job.recipe_path
        if not path.exists() or path.read_text("utf-8") != text:
            records.write_text(path, text)
        before = [path, *job.inputs]
        after = [job.made, *job.shown]
        if _is_fresh(job, sha256_text(text), fresh, hashes):
            fresh[job.made] = job
            newest = max(_mtime(p) for p in before)
            for output in after:
                if _mtime(output) <= newest:  # equal would do, if every tool rounded alike
                    hashes.touch(output, newest + _TICK_NS)
        else:
            existing = [_mtime(p) for p in after if p.exists()]
            if existing and _mtime(path) <= max(existing):
                os.utime(path, ns=(max(existing) + _TICK_NS,) * 2)
    hashes.save()
    return list(fresh.values())


def _mtime(path: Path) -> int:
    return path.stat().st_mtime_ns


def _is_fresh(job: Job, recipe: str, fresh: dict[Path, Job], hashes: FileHashes) -> bool:
    if not job.made.exists() or any(path not in fresh for path in job.inputs):
        return False
    try:
        made = records.read_json(job.made)
        if made["recipe"] != recipe or made["inputs"] != {str(p): outputs_identity(p) for p in job.inputs}:
            return False
        outputs = made["outputs"]
        if any(str(path) not in outputs for path in job.shown):
            return False
        return all(Path(name).exists() and hashes.of(Path(name)) == digest for name, digest in outputs.items())
    except (ValueError, KeyError):
        return False
