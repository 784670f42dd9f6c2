"""What made a file: content hashes, and mtimes that tell the truth.

Every job reads one recipe (its settings and the identity of its code) and ends by writing one
record, its `made` file: the recipe's hash, the identity of each input and the hash of each output.
`settle` compares the records with the files before Snakemake looks, and sets mtimes so that
Snakemake's own rule, "an input is newer", is right after a clone, a checkout or a pull as well.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.errors import DataError
from sdlora.flow import mtimes, store
from sdlora.flow.hashing import PRIVATE, FileHashes, is_regular, printable, read_regular, sha256_of, sha256_text
from sdlora.flow.recipe import Recipe
from sdlora.stages.flip import kohya_set

#: The file whose mtime Snakemake takes for that of a folder.
FOLDER_MARK = ".snakemake_timestamp"
#: Where lies what was changed in a job's files before the job makes them again, by content; nothing deletes it.
CHANGED = PRIVATE / "changed"


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
    found = read_regular(path)
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


def write_made(recipe: Recipe, outputs: Iterable[Path]) -> None:
    """Record what made a job's files; written last, so its presence means the job is whole.

    `recipe` is what the job read at its start: the file may have changed since.
    """
    records.write_json(
        recipe.made,
        {
            "recipe": recipe.digest(),
            "asked": recipe.identity(),
            "inputs": inputs_of(recipe),
            "outputs": {str(path): sha256_of(path) for path in sorted(outputs)},
        },
    )


def settle(jobs: Sequence[Recipe]) -> list[Recipe]:
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
        raise DataError(
            f"{error.filename or PRIVATE}: {error.strerror}; the pipeline must be able to write it"
        ) from None


def stale(goals: Sequence[Path], jobs: Sequence[Recipe]) -> list[Path]:
    """The records of some jobs that are there although the jobs would run again; nothing is changed.

    Args:
        goals: The records.
        jobs: All, in topological order.
    """
    wanted = with_all_before(goals, jobs)
    fresh: dict[Path, Recipe] = {}
    hashes = FileHashes()
    for job in jobs:
        if job.made in wanted and _is_fresh(job, read_made(job.made), fresh, hashes):
            fresh[job.made] = job
    hashes.save()
    return [goal for goal in goals if goal.exists() and goal not in fresh]


def with_all_before(goals: Iterable[Path], jobs: Sequence[Recipe]) -> set[Path]:
    """The records of some jobs and of all that they are made from."""
    of = {job.made: job for job in jobs}
    found: set[Path] = set()
    waiting = [*goals]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += of[path].inputs
    return found


def _settle(jobs: Sequence[Recipe]) -> list[Recipe]:
    hashes = FileHashes()
    for job in jobs:
        text = job.text
        if not job.path.exists() or job.path.read_bytes() != text.encode():
            records.write_text(job.path, text)
    files = [path for job in jobs for path in (job.path, *_timed(job)) if path.exists()]
    mtimes.leave_room(dict.fromkeys(files), PRIVATE / "clock.probe", hashes.touch)
    fresh: dict[Path, Recipe] = {}
    for job in jobs:
        made = read_made(job.made)
        if _is_fresh(job, made, fresh, hashes):
            fresh[job.made] = job
            newest = max(map(mtimes.mtime_ns, (job.path, *job.inputs)))
            for output in _timed(job):
                if mtimes.mtime_ns(output) <= newest:  # equal would do, if every tool rounded alike
                    mtimes.make_newer(output, newest, hashes.touch)
        else:
            if made is not None:
                _set_aside(job, made, hashes)
            oldest = mtimes.mtime_ns(job.path)
            for output in _timed(job):
                if output.exists() and mtimes.mtime_ns(output) >= oldest:
                    mtimes.make_older(output, oldest, hashes.touch)
    hashes.save()
    return list(fresh.values())


def _timed(job: Recipe) -> Iterator[Path]:
    """The files whose mtimes Snakemake reads: of a folder, the mark that it keeps inside, where there is one."""
    for path in (*job.outputs, job.made):
        mark = path / FOLDER_MARK
        yield mark if mark.exists() else path


def _set_aside(job: Recipe, made: Made, hashes: FileHashes) -> None:
    """Keep what somebody, or a power cut, changed in a job's files since it made them: the job will make them again.

    A second name of the file, so it takes no time and no space where the disk has hard links.
    """
    changed = {}
    for name, digest in made.outputs.items():
        with suppress(OSError):  # what is gone, or cannot be read, cannot be kept
            if is_regular(Path(name)) and (found := hashes.of(Path(name))) != digest:
                changed[name] = CHANGED / found[:12] / name
    for name, kept in changed.items():
        store.link(Path(name), kept)
    if changed:
        first, *others = changed
        more = f" (and {len(others)} more)" if others else ""
        print(
            f"note: {printable(Path(first))}{more} has changed since {job.stage} made it: it will be made again, and "
            f"the changed file is kept as {printable(changed[first])}",
            file=sys.stderr,
        )


def _is_fresh(job: Recipe, made: Made | None, fresh: dict[Path, Recipe], hashes: FileHashes) -> bool:
    if any(path not in fresh for path in job.inputs):
        return False
    if made is None or made.recipe != job.digest() or not _has_outputs(job, made):
        return False
    return made.inputs == inputs_of(job) and is_whole(made, hashes)


def _has_outputs(job: Recipe, made: Made) -> bool:
    """Whether a record names every output, or something in it where it is a folder that is not empty."""
    named = {*made.outputs, *(str(folder) for name in made.outputs for folder in Path(name).parents)}
    return all(path.exists() and (str(path) in named or _is_empty(path)) for path in job.outputs)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and all(inside.name == FOLDER_MARK for inside in path.iterdir())


def inputs_of(job: Recipe) -> dict[str, str]:
    """The identity of each of a job's inputs, as its record names them."""
    return {str(path): outputs_identity(path) for path in job.inputs}


def is_whole(made: Made, hashes: FileHashes) -> bool:
    """Whether all files of a record are as they were."""
    return all(is_regular(Path(name)) and hashes.of(Path(name)) == digest for name, digest in made.outputs.items())
