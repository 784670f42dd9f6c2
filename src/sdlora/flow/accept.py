"""Keep a version's results after an update of sdlora or of a package: what changed is written into the records.

    sdlora accept v8          # shows what changed, asks, and writes
    sdlora accept v8 --yes    # for scripts

Nobody should train for days because a tool was updated. Changed settings and changed data are never accepted: for them
the results are not the answer.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora import records
from sdlora.config.load import load
from sdlora.config.params import Params
from sdlora.errors import DataError, ParamsError, suggest
from sdlora.flow import freshness, inputs, lock, plan, store
from sdlora.flow.freshness import Made
from sdlora.flow.hashing import FileHashes
from sdlora.flow.identity import Identity, differing, identity_of, is_update, run_key, told
from sdlora.flow.recipe import Recipe, Values
from sdlora.stages.adopt.recipe import AdoptRecipe
from sdlora.stages.animate.recipe import AnimateRecipe
from sdlora.stages.evaluate.recipe import EvaluateRecipe
from sdlora.stages.export.recipe import ExportRecipe
from sdlora.stages.report.recipe import ReportRecipe
from sdlora.stages.train.recipe import DONE


@dataclass(frozen=True)
class Change:
    """One job whose files are kept although code or packages have changed."""

    job: Recipe
    made: Made | None  # None: a training that is in the store only: stopped, or no longer published
    names: tuple[str, ...]  # what differs, dotted
    before: Identity
    run: Path | None = None  # that training

    @property
    def text(self) -> str:
        """What changed, for a reader."""
        after = _named(self.job.identity())
        if self.made is not None:
            what = f"{len(self.made.outputs)} files"
        elif self.run is not None and (self.run / DONE).exists():
            what = "a training that the store has"
        else:
            what = "a training that was stopped"
        return f"{self.job.stage} {self.job.name} ({what}): {told([*self.names], self.before, after)}"


def changes(params: Params, versions: Sequence[str]) -> list[Change]:
    """What would have to be made again for some versions, only because code or packages were updated.

    Raises:
        ParamsError: If there is no such version.
        DataError: If something else has changed as well; names what.
    """
    for name in versions:
        if name not in params.versions:
            raise ParamsError(f"there is no version {name!r}{suggest(name, params.versions)}")
    jobs = plan.jobs(params)
    hashes = FileHashes()
    last = (EvaluateRecipe, ExportRecipe, AdoptRecipe, AnimateRecipe)
    wanted = freshness.with_all_before(
        {job.made for job in jobs if isinstance(job, last) and job.name in versions}, jobs
    )
    found = [change for job in jobs if job.made in wanted for change in _change(job, hashes)]
    hashes.save()
    return found


def with_trainings(params: Params, versions: Sequence[str]) -> list[str]:
    """Some versions and their further trainings (`train.seeds`), each once."""
    trainings = (params.trainings(name) if name in params.versions else [name] for name in versions)
    return list(dict.fromkeys(name for names in trainings for name in names))


def accept(found: Iterable[Change]) -> None:
    """Write the changes into the records, and make what was kept of trainings theirs."""
    for change in found:
        if change.made is None:
            _adopt(change.run, change.job)
            continue
        if change.job.stage == "train" and change.made.asked is not None:
            key = run_key(change.made.asked, change.job.inputs)
            _adopt(store.STORE / "train" / key, change.job)
        after = _named(change.job.identity())
        update = {name: [change.before.get(name), after.get(name)] for name in change.names}
        records.write_json(
            change.job.made,
            {
                "recipe": change.job.digest(),
                "asked": change.job.identity(),
                "inputs": change.made.inputs,
                "outputs": change.made.outputs,
                "accepted": [*change.made.accepted, update],
            },
        )


def _change(job: Recipe, hashes: FileHashes) -> Iterator[Change]:
    if not all(path.exists() for path in job.inputs):  # something before it is to be made first
        return
    made = freshness.read_made(job.made)
    after = _named(job.identity())
    if made is None:
        if job.stage == "train":
            yield from _in_the_store(job)
        return
    where = f"{job.stage} {job.name}"
    if made.inputs != freshness.inputs_of(job):
        raise DataError(f"{where}: what it was made from has changed; run the version again")
    if made.recipe == job.digest():
        return
    if made.asked is None:
        raise DataError(f"{where}: {job.made} was written by an older sdlora and does not say what it was made from")
    before = _named(made.asked)
    names = differing(before, after)
    others = [name for name in names if not is_update([name])]
    if others:
        raise DataError(
            f"{where}: {told(others, before, after)}; an update can be accepted, "  # noqa: S608 - no SQL
            f"changed settings or data cannot: set them back, or run the version again"
        )
    if not freshness.is_whole(made, hashes):
        raise DataError(f"{where}: its files are not as they were made; run the version again")
    yield Change(job, made, tuple(names), before)


def _named(values: Values, inputs: Sequence[Path] = ()) -> Identity:
    """A recipe's values by name, as they are read back from a file."""
    return identity_of(json.loads(records.canonical_json(values)), inputs)


def _in_the_store(job: Recipe) -> Iterator[Change]:
    """The newest training in the store that is this one but for an update, a finished one first.

    Snakemake deletes a job's outputs before it runs: of one that was stopped at its start only the store's are left.
    """
    runs = store.entries("train")
    if not runs or (store.STORE / "train" / _key(job) / DONE).exists():  # that one will be published
        return
    from sdlora.stages.train.checkpoint import newest_manifest  # imports torch

    wanted = _named(job.identity(), job.inputs)
    for run in sorted(runs, key=lambda run: not (run / DONE).exists()):
        manifest = newest_manifest(run)
        names = differing(manifest.identity, wanted) if manifest else []
        if manifest and names and is_update(names):
            yield Change(job, None, tuple(names), manifest.identity, run)
            return


def _key(job: Recipe) -> str:
    """The training that a job looks for in the store."""
    return run_key(job.identity(), job.inputs)


def _adopt(run: Path | None, job: Recipe) -> None:
    """Make a kept training the one that the job would look for."""
    target = store.STORE / "train" / _key(job)
    if run is None or not run.is_dir() or run == target or (target / DONE).exists():
        return
    from sdlora.stages.train.checkpoint import manifests, newest_manifest, reseal  # imports torch

    begun, kept = (newest_manifest(folder) if folder.is_dir() else None for folder in (target, run))
    if begun is not None and kept is not None and not (run / DONE).exists() and begun.step >= kept.step:
        raise DataError(
            f"{job.stage} {job.name}: it was begun anew since and is at step {begun.step}, the one before at "
            f"{kept.step}: run it again, which goes on"
        )
    with store.sole_use(run):
        for manifest in [*manifests(run)]:
            reseal(manifest, _named(job.identity(), job.inputs))
        if target.is_dir():  # the job that said so had begun
            with store.sole_use(target):
                store.delete(target)
        run.rename(target)


def write_pages(params: Params, versions: Sequence[str]) -> None:
    """Write the pages of the versions that are finished anew: they say what was accepted."""
    from sdlora.stages.report.page import write_version  # imports NumPy
    from sdlora.stages.report.votes import read_votes

    votes = read_votes(inputs.VOTES)
    jobs = plan.jobs(params)
    for job in jobs:
        if not isinstance(job, ReportRecipe) or job.version not in versions:
            continue
        if all(path.exists() for path in freshness.with_all_before({job.made}, jobs) - {job.made}):
            freshness.write_made(job, write_version(job, votes))


def run(versions: Sequence[str], sure: bool) -> None:
    """The command: show what changed, ask unless `sure`, write.

    Raises:
        SdloraError: If something cannot be accepted.
    """
    params = load(Path("params.yaml"), studies=True)
    lock.acquire(["accept"])
    versions = with_trainings(params, versions)
    found = changes(params, versions)
    if not found:
        print("nothing to accept: what is there was made by this code and these packages")
        return
    print("\n".join(change.text for change in found))
    if not sure and not _is_wanted():
        raise DataError("nothing was changed")
    accept(found)
    write_pages(params, versions)
    print(f"kept; the records and the pages of {', '.join(versions)} say so")


def _is_wanted() -> bool:
    """Whether the user says so; where nobody can answer, as in a script, it is a no."""
    try:
        return input("keep these results? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
