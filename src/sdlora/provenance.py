"""What made a file: content hashes, and mtimes that tell the truth.

Every job reads one recipe (its settings and the identity of its code) and ends by writing one
record, its `made` file: the recipe's hash, the identity of each input and the hash of each output.
`settle` compares the records with the files before Snakemake looks, and sets mtimes so that
Snakemake's own rule, "an input is newer", is right after a clone, a checkout or a pull as well.
"""

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import kohya_set, mtimes, records
from sdlora.errors import DataError

STORE = Path(".sdlora")


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
        self._known: dict[str, tuple[int, int, str]] = _remembered(path)
        self._changed = False

    def of(self, path: Path) -> str:
        """The file's sha256 in hex."""
        found = path.stat()
        known = self._known.get(printable(path))
        if known and known[:2] == (found.st_mtime_ns, found.st_size):
            return known[2]
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


def _remembered(path: Path) -> dict[str, tuple[int, int, str]]:
    """The rows of a file of hashes; what is no such row was damaged and is left out."""
    found = _read_regular(path)
    rows = found.items() if isinstance(found, dict) else ()
    return {name: (row[0], row[1], row[2]) for name, row in rows if _is_hash_row(row)}


def _is_hash_row(row: Any) -> bool:
    return isinstance(row, list) and [type(value) for value in row] == [int, int, str]


def _read_regular(path: Path) -> Any:
    """The value of a JSON file; None if it is absent, or is no regular file or damaged, which stderr is told."""
    if not path.exists():
        return None
    if not _is_regular(path):
        print(f"note: {path} is no regular file; going on as if it were not there", file=sys.stderr)
        return None
    try:
        return records.read_json(path)
    except (ValueError, OSError) as error:
        print(f"note: {path} is damaged ({error}); going on as if it were not there", file=sys.stderr)
        return None


def _is_regular(path: Path) -> bool:
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


def sha256_text(text: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def identity_of_folder(folder: Path, suffixes: Sequence[str], hashes: FileHashes) -> str:
    """One hash for the names and bytes of the files of some kinds below a folder (or of one file)."""
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    kept = [p for p in files if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    return sha256_text("\n".join(f"{printable(p.relative_to(folder))} {hash_or_why_not(p, hashes)}" for p in kept))


def hash_or_why_not(path: Path, hashes: FileHashes) -> str:
    """A file's hash; the stage that needs the file says that it cannot be read, here it only differs from others."""
    try:
        return hashes.of(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


@dataclass(frozen=True)
class Made:
    """A record: what made a job's files."""

    recipe: str  # hash of the recipe's text
    inputs: dict[str, str]  # identity of each input, by the path of its record
    outputs: dict[str, str]  # sha256 of each file, by its path in the project
    asked: dict[str, Any] | None = None  # the recipe itself; older records have only its hash
    accepted: tuple[dict[str, Any], ...] = ()  # updates of code and packages after which the files were kept


def read_made(path: Path) -> Made | None:
    """A record that can be trusted to name files of this project; None if there is none, or it is damaged."""
    found = _read_regular(path)
    if found is None:
        return None
    if not (isinstance(found, dict) and {"recipe", "inputs", "outputs"} <= found.keys()):
        print(f"note: {path} is no record; going on as if it were not there", file=sys.stderr)
        return None
    texts = all(
        isinstance(part, dict) and all(isinstance(value, str) for value in part.values())
        for part in (found["inputs"], found["outputs"])
    )
    if not texts or not isinstance(found["recipe"], str) or not all(map(_is_inside, found["outputs"])):
        print(f"note: {path} names what no job writes; going on as if it were not there", file=sys.stderr)
        return None
    asked, accepted = found.get("asked"), found.get("accepted")
    return Made(
        found["recipe"],
        found["inputs"],
        found["outputs"],
        asked if isinstance(asked, dict) else None,
        tuple(accepted) if isinstance(accepted, list) else (),
    )


def _is_inside(name: str) -> bool:
    return "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts


def outputs_identity(made: Path) -> str:
    """One hash for everything a job wrote that the jobs after it read: not the set for kohya's trainer.

    Raises:
        DataError: If its record is damaged or gone.
    """
    record = read_made(made)
    if record is None:
        raise DataError(f"{made}: the record of the job before is damaged or gone; run the same command again")
    unread = f"{(made.parent.parent / kohya_set.FOLDER).as_posix()}/"
    read = {path: digest for path, digest in record.outputs.items() if not path.startswith(unread)}
    return sha256_text(records.canonical_json(read))


def write_made(made: Path, recipe: str, inputs: Sequence[Path], outputs: Iterable[Path]) -> None:
    """Record what made a job's files; written last, so its presence means the job is whole.

    `recipe` is the text the job read at its start: the file may have changed since.
    """
    records.write_json(
        made,
        {
            "recipe": sha256_text(recipe),
            "asked": json.loads(recipe),
            "inputs": {str(path): outputs_identity(path) for path in inputs},
            "outputs": {str(path): sha256_of(path) for path in sorted(outputs)},
        },
    )


def settle(jobs: Sequence[Job]) -> list[Job]:
    """Make recipes current and mtimes truthful; `jobs` must be in topological order.

    A job is fresh when its record fits its recipe, its inputs (fresh themselves) and its files.
    A fresh job's outputs are made at least as new as its inputs; the outputs of one that is not
    fresh are made older than its recipe, so that Snakemake runs it.

    Returns:
        The jobs that are fresh.

    Raises:
        DataError: If something of the pipeline's own cannot be written.
    """
    try:
        return _settle(jobs)
    except OSError as error:
        raise DataError(f"{error.filename or STORE}: {error.strerror}; the pipeline must be able to write it") from None


def _settle(jobs: Sequence[Job]) -> list[Job]:
    hashes = FileHashes()
    for job in jobs:
        text = records.canonical_json(job.recipe)
        if not job.recipe_path.exists() or job.recipe_path.read_bytes() != text.encode():
            records.write_text(job.recipe_path, text)
    files = dict.fromkeys(path for job in jobs for path in (job.recipe_path, job.made, *job.shown) if path.exists())
    mtimes.leave_room(files, STORE / "clock.probe", hashes.touch)
    fresh: dict[Path, Job] = {}
    for job in jobs:
        if _is_fresh(job, sha256_text(records.canonical_json(job.recipe)), fresh, hashes):
            fresh[job.made] = job
            newest = max(map(mtimes.mtime_ns, (job.recipe_path, *job.inputs)))
            for output in (job.made, *job.shown):
                if mtimes.mtime_ns(output) <= newest:  # equal would do, if every tool rounded alike
                    mtimes.make_newer(output, newest, hashes.touch)
        else:
            oldest = mtimes.mtime_ns(job.recipe_path)
            for output in (job.made, *job.shown):
                if output.exists() and mtimes.mtime_ns(output) >= oldest:
                    mtimes.make_older(output, oldest, hashes.touch)
    hashes.save()
    return list(fresh.values())


def _is_fresh(job: Job, recipe: str, fresh: dict[Path, Job], hashes: FileHashes) -> bool:
    if any(path not in fresh for path in job.inputs):
        return False
    made = read_made(job.made)
    if made is None or made.recipe != recipe or any(str(path) not in made.outputs for path in job.shown):
        return False
    return made.inputs == inputs_of(job) and is_whole(made, hashes)


def inputs_of(job: Job) -> dict[str, str]:
    """The identity of each of a job's inputs, as its record names them."""
    return {str(path): outputs_identity(path) for path in job.inputs}


def is_whole(made: Made, hashes: FileHashes) -> bool:
    """Whether all files of a record are as they were."""
    return all(_is_regular(Path(name)) and hashes.of(Path(name)) == digest for name, digest in made.outputs.items())
