"""What the DAG starts from and does not make: pictures, captions, masks and weights."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sdlora import choices
from sdlora.config import alike
from sdlora.config.animate import XT_COMMIT
from sdlora.config.dataset import ALPHA, Dataset
from sdlora.config.evaluate import NETWORKS
from sdlora.config.params import Base, Params, Version
from sdlora.config.search import Trial
from sdlora.config.sources import FolderSource, HubSource, Source
from sdlora.errors import DataError
from sdlora.flow import folders
from sdlora.flow.hashing import FileHashes
from sdlora.stages.scrape import pin
from sdlora.stages.scrape.source import PICTURE_SUFFIXES

VOTES = Path("votes.jsonl")  # as a page saves them
_LOCAL = "{} lies on this machine, where a model has no revisions"
LEAST_OF_PRODIGY = 0.1  # a learning_rate that is still a factor, and not the rate of another optimizer
MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".txt", ".model")


def base_identity(base: Base, hashes: FileHashes) -> str:
    """Which weights a base means: content for local files, id and revision for the hub."""
    vae = f" + {identity_of(base.vae, base.vae_revision, hashes)}" if base.vae else ""
    return identity_of(base.model, base.revision, hashes) + vae


def identity_of(model: str, revision: str | None, hashes: FileHashes) -> str:
    """Which weights a folder, file or hub id means."""
    path = Path(model)
    if path.exists():
        return f"sha256:{folders.identity(path, hashes, MODEL_SUFFIXES)}"
    return f"hub:{model}@{revision or 'main'}"


def source_files(sources: Sequence[Source], hashes: FileHashes) -> dict[str, str]:
    """Content identity of each source on this machine; what is scraped is pinned instead."""
    return {
        path: folders.identity(Path(path), hashes, suffixes)
        for path, suffixes in map(pin.on_this_machine, sources)
        if path and Path(path).exists()
    }


def override_identity(file: str | None, hashes: FileHashes) -> str | None:
    """Content of the user's own captions, where there are any."""
    return hashes.of(Path(file)) if file and Path(file).exists() else None


def mask_identity(masks: str | None, hashes: FileHashes) -> str | None:
    """Content of the folder of masks, where there is one."""
    if masks in (None, ALPHA) or not Path(str(masks)).is_dir():
        return None
    return folders.identity(Path(str(masks)), hashes, PICTURE_SUFFIXES)


def lora_identity(file: str | None, hashes: FileHashes) -> str | None:
    """Content of a LoRA from elsewhere; None where it is not there."""
    path = None if file is None else Path(file)
    return None if path is None or not path.exists() else folders.identity(path, hashes, MODEL_SUFFIXES)


def votes_identity(hashes: FileHashes) -> str | None:
    """Content of what people voted, where they have: an empty file is as none."""
    return hashes.of(VOTES) if VOTES.is_file() and VOTES.stat().st_size else None


def check_place(project: Path) -> None:
    """Everything lies relative to the Snakefile: scripts, embedded models and pictures, `params.yaml`.

    Raises:
        DataError: If Snakemake runs in another folder.
    """
    if project.resolve() != Path.cwd().resolve():
        raise DataError(
            f"Snakemake runs in {Path.cwd()}, but the pipeline lies in {project}: say `cd {shlex.quote(str(project))}` "
            f"before (copy the project for a second workspace)"
        )


def _pull(path: str) -> str:
    """What to say where somebody has shared a folder with DVC."""
    return "; DVC knows it: say `dvc pull`" if Path(f"{path.rstrip('/')}.dvc").exists() else ""


def check(params: Params) -> None:
    """Fail before any work when a version of `run` has no pictures to start from, or no LoRA or captions that it names.

    Raises:
        DataError: If a folder source is missing or holds no picture, a LoRA, masks or captions are missing, or a
            network on this machine has a revision.
    """
    for name in params.run:
        check_of(params, {"version": name})
    for name in dict.fromkeys(params.versions[name].dataset for name in params.run):
        check_of(params, {"dataset": name})


def check_of(params: Params, wildcards: Mapping[str, str]) -> None:
    """The same of the version or the dataset of one job, whether `run` has it or not.

    Raises:
        DataError: As `check`.
    """
    if "version" in wildcards:
        _check_loras(wildcards["version"], params.versions[wildcards["version"]])
        _check_revisions(wildcards["version"], params.versions[wildcards["version"]])
    if "dataset" in wildcards:
        _check_dataset(wildcards["dataset"], params.datasets[wildcards["dataset"]])


def _check_dataset(name: str, dataset: Dataset) -> None:
    masks, captions = dataset.masks, dataset.captions_override
    if masks not in (None, ALPHA) and not Path(str(masks)).is_dir():
        raise DataError(f"datasets.{name}.masks: there is no folder {masks!r}; or did you mean alpha?")
    if captions is not None and not Path(captions).is_file():
        raise DataError(f"datasets.{name}.captions_override: there is no file {captions!r}{_pull(captions)}")
    for number, source in enumerate(dataset.sources):
        where = f"datasets.{name}.sources[{number}].path"
        if isinstance(source, HubSource) and source.local and not Path(source.local).is_dir():
            raise DataError(f"{where.removesuffix('path')}local: there is no folder {source.local!r}")
        if not isinstance(source, FolderSource):
            continue
        if not Path(source.path).is_dir():
            raise DataError(f"{where}: there is no folder {source.path!r}{_pull(source.path)}")
        if not folders.has_files(Path(source.path)):
            raise DataError(f"{where}: the folder {source.path!r} holds no picture: there is no file in it")


def moving(params: Params) -> Iterator[str]:
    """A sentence for each model of the hub that a version of `run` names at what can move: a branch, a tag, nothing.

    Its files are then part of no identity, and a version that was made of others would be called fresh. And one for
    each base with a revision that means nothing: to refuse it, as `check` does of networks, would have its LoRAs, of
    whose identity it is a part, trained again.
    """
    named = dict.fromkeys(one for name in params.run for one in _of_hub(params, name))
    for option, model, revision in named:
        if Path(model).exists():
            if revision is not None and option.startswith("bases."):
                yield f"note: {option} is {revision}, but {_LOCAL.format(model)}: the line has no effect"
        elif not re.fullmatch("[0-9a-f]{40}", revision or ""):
            yield (
                f"note: {option} is {revision or 'not set, which means main'}: {model} can change under that name, and "
                f"nothing would notice; name a commit"
            )


def doubtful(params: Params) -> Iterator[str]:
    """A sentence for each version that is allowed, and hardly meant; and for names that a Mac would take for one."""
    for (section, name), first in alike.alike_in(dict(params)):
        yield (
            f"note: {section}.{name} differs from {first} in case alone: on a Mac, whose file systems take both for "
            f"one, it is refused"
        )
    for name, version in params.versions.items():
        rate, trained = version.train.learning_rate, version.lora is None and not isinstance(version, Trial)
        if trained and version.train.optimizer == "prodigy" and rate < LEAST_OF_PRODIGY:
            yield (
                f"note: versions.{name}.train.learning_rate is {rate:g}, by which prodigy multiplies the rate that it "
                f"finds: next to nothing may be learnt; 1.0 is its authors' own"
            )
    for name in params.run:
        version = params.versions[name]
        held_out, measured = params.datasets[version.dataset].held_out, version.sample.max_references
        if isinstance(held_out, int) and held_out > measured:
            yield (
                f"note: datasets.{version.dataset}.held_out is {held_out}, but {name} measures {measured} of them: the "
                f"others are neither learnt from nor measured; raise sample.max_references"
            )


def _of_hub(params: Params, name: str) -> Iterator[tuple[str, str, str | None]]:
    """The models that a version names: the option that says which revision, the model, and the revision."""
    version = params.versions[name]
    base, place = params.bases[version.base], f"bases.{version.base}"
    yield f"{place}.revision", base.model, base.revision
    if base.vae is not None:
        yield f"{place}.vae_revision", base.vae, base.vae_revision
    if version.caption.by != "none":
        yield f"{place}.captioner_revision", base.captioner, base.captioner_revision
    needs = {need for metric in version.evaluate.metrics for need in choices.pick(choices.METRICS, metric).needs}
    for setting, revision in NETWORKS.items():
        if setting in needs:
            yield f"evaluate.{revision}", *version.evaluate.network(setting)
    if version.animate is not None:
        yield "animate.revision", version.animate.model, version.animate.revision


def _check_revisions(name: str, version: Version) -> None:
    evaluate, animate = version.evaluate, version.animate
    stated = [
        (f"evaluate.{revision}", getattr(evaluate, setting), getattr(evaluate, revision))
        for setting, revision in NETWORKS.items()
    ]
    if animate is not None and animate.revision != XT_COMMIT:  # which is the default model's, unsaid
        stated.append(("animate.revision", animate.model, animate.revision))
    for option, model, revision in stated:
        if revision is not None and Path(model).exists():
            raise DataError(
                f"versions.{name}.{option} is {revision!r}, but {_LOCAL.format(repr(model))}: leave {option} out, "
                f"or name a model of the hub"
            )


def _check_loras(name: str, version: Version) -> None:
    own = (Path("results") / name).resolve()
    for one in version.lora or ():
        if one.file is None:
            continue
        if Path(one.file).resolve().is_relative_to(own):
            raise DataError(
                f"versions.{name}.lora: {one.file!r} lies in results/{name}, which {name}'s own files take the place "
                f"of: copy it elsewhere, or give the version another name"
            )
        if not Path(one.file).exists():
            raise DataError(f"versions.{name}.lora: there is no file or folder {one.file!r}{_pull(one.file)}")
