"""The DAG's names: which jobs the versions need, what each reads and where it writes."""

from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sdlora import choices
from sdlora.config.params import Base, Dataset, Fit, Params, Version
from sdlora.config.train import MENUS, Train
from sdlora.errors import ParamsError
from sdlora.flow import inputs
from sdlora.flow.code import CODE_MEMORY, Code
from sdlora.flow.freshness import Job
from sdlora.flow.hashing import FileHashes
from sdlora.stages.scrape import pin

SETS = Path("data/sets")
RESULTS = Path("results")
SCRIPTS = Path("workflow/scripts")
# Named otherwise than imported.
DISTRIBUTIONS = {"PIL": "pillow", "ruamel": "ruamel.yaml", "skimage": "scikit-image", "yaml": "pyyaml"}


class Seen:
    """What files and code are, looked at once for all jobs."""

    def __init__(self, hashes: FileHashes | None = None, code: Code | None = None) -> None:
        self.hashes = hashes or FileHashes()
        self._code = code or Code(CODE_MEMORY)
        self._makers: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}

    def maker(self, stage: str, entries: tuple[str, ...]) -> dict[str, Any]:
        """The identity of the code that a stage can reach with some menu entries, and of the packages it imports."""
        if (stage, entries) not in self._makers:
            found = self._code.reach(SCRIPTS / f"{stage}.py", entries)
            software = {name: package_version(name) for name in sorted(map(distribution, found.packages))}
            self._makers[stage, entries] = {"code": found.identity, "software": software, "entries": [*entries]}
        return self._makers[stage, entries]

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


def fit_name(params: Params, name: str, method: str | None = None) -> str:
    """Folder of a version's fitted pictures, such as `pad-edge-64`."""
    version = params.versions[name]
    side = version.fit.size_px or params.bases[version.base].size_px
    method = method or version.fit.method
    fill = f"-{version.fit.fill.removeprefix('#')}" if method in ("pad", "bucket") else ""
    step, aspect = version.fit.bucket_step_px, version.fit.bucket_max_aspect
    shapes = (f"-step{step}" if step else "") + (f"-aspect{aspect:g}".replace(".", "p") if aspect else "")
    return f"{method}{fill}{shapes if method == 'bucket' else ''}-{side}"


def set_folder(dataset: str, fit: str = "") -> Path:
    """Folder of a dataset, or of one way of fitting it."""
    return SETS / dataset / fit


def made(folder: Path, stage: str) -> Path:
    """Where a stage's record lies."""
    return folder / "made" / f"{stage}.json"


def jobs(params: Params) -> list[Job]:
    """Every job of every version and the gathering of every dataset, in topological order, each once.

    Raises:
        ParamsError: If two versions want different things under one name.
    """
    seen = Seen()
    found: dict[Path, Job] = {}
    owner: dict[Path, str] = {}
    for name in params.versions:
        for job in _jobs_of_version(params, name, seen):
            known = found.setdefault(job.made, job)
            if known.recipe != job.recipe:
                raise ParamsError(
                    f"versions {owner[job.made]} and {name} both write {job.made.parent.parent} but with different "
                    f"{job.stage} settings; give one of them its own dataset entry"
                )
            owner.setdefault(job.made, name)
    for name, dataset in params.datasets.items():
        job = _scrape_job(name, dataset, seen)
        found.setdefault(job.made, job)
    found_jobs = [*found.values(), _index_job(params, seen)]
    seen.save()
    return found_jobs


def _job(
    stage: str,
    name: str,
    folder: Path,
    recipe: dict[str, Any],
    inputs: list[Path],
    shown: list[str],
    seen: Seen,
    entries: tuple[str, ...] = (),
) -> Job:
    record = made(folder, name.rsplit("/", 1)[-1] if stage == "encode" else stage)
    whole = {"stage": stage, **seen.maker(stage, entries), **recipe}
    return Job(stage, name, whole, tuple(inputs), record, tuple(folder / path for path in shown))


def _jobs_of_version(params: Params, name: str, seen: Seen) -> Iterator[Job]:
    version = params.versions[name]
    base, dataset = params.bases[version.base], params.datasets[version.dataset]
    scrape = _scrape_job(version.dataset, dataset, seen)
    yield scrape
    references = fit_name(params, name, "pad")
    for method in dict.fromkeys(("pad", version.fit.method)):
        yield from _dataset_jobs(params, name, method, scrape, seen)
    own = set_folder(version.dataset, fit_name(params, name))
    reference_folder = set_folder(version.dataset, references)
    folder = RESULTS / name
    model = {"base_identity": inputs.base_identity(base, seen.hashes), "threads": params.threads}
    cached = version.train.cache_latents == "disk"
    train = _job(
        "train",
        name,
        folder,
        {**model, "base": _weights(base, base.learning_rate_scale), "train": _resolved(version.train, base),
         "flip": version.flip.model_dump(mode="json", exclude={"kohya"}),
         "checkpoint_steps": version.train.checkpoint_steps,
         "trigger": dataset.trigger, "encode": None if cached else version.encode.model_dump(mode="json"),
         "export": version.export.model_dump(mode="json")},
        [made(own, "flip"), *([made(own, f"encode-{version.base}")] if cached else [])],
        ["train_log.csv", "config.yaml"],
        seen,
        (choices.FAMILIES[base.family], *_train_entries(version.train)),
    )  # fmt: skip
    yield train
    sample = _job(
        "sample",
        name,
        folder,
        {**model, "base": _weights(base), "sample": version.sample.model_dump(mode="json"),
         "size_px": version.fit.size_px or base.size_px},
        [train.made, made(reference_folder, "caption")],
        ["samples/index.jsonl"],
        seen,
        (choices.FAMILIES[base.family], choices.SCHEDULERS[version.sample.scheduler]),
    )  # fmt: skip
    yield sample
    evaluate = _job(
        "evaluate",
        name,
        folder,
        {"evaluate": version.evaluate.model_dump(mode="json")},
        [sample.made, made(reference_folder, "fit")],
        ["metrics.csv", "metrics.json", "best.json"],
        seen,
        tuple(choices.METRICS[name] for name in version.evaluate.metrics),
    )
    yield evaluate
    settings = {"version": name, "settings": summary(version)}
    yield _job("report", name, folder, settings, [evaluate.made], ["report/index.html"], seen)


def _scrape_job(name: str, dataset: Dataset, seen: Seen) -> Job:
    """The job that gathers a dataset; what comes from the web is pinned, so code and packages say nothing about it."""
    asked = dataset.model_dump(mode="json", include={"sources", "scrape", "minimum", "held_out"})
    recipe: dict[str, Any] = {"dataset": asked, "files": inputs.source_files(dataset, seen.hashes)}
    if pin.uses_web(dataset):
        recipe |= {"code": None, "software": {}}
    sources = dict.fromkeys(choices.SOURCES[source.kind] for source in dataset.sources)
    return _job("scrape", name, set_folder(name), recipe, [], ["manifest.jsonl"], seen, tuple(sources))


def may_scrape(params: Params, job: Job, forced: bool) -> None:
    """Called before a scrape job is planned.

    Raises:
        SdloraError: If its pictures are neither there nor may be scraped now; the message says what to do.
    """
    pin.may_run(job.name, job.recipe, set_folder(job.name), params.scraping, forced)


def _dataset_jobs(params: Params, name: str, method: str, scrape: Job, seen: Seen) -> Iterator[Job]:
    """fit, caption, flip and encode of a version's dataset, for one method of fitting."""
    version = params.versions[name]
    base, dataset = params.bases[version.base], params.datasets[version.dataset]
    fit_folder = fit_name(params, name, method)
    folder = set_folder(version.dataset, fit_folder)
    job_name = f"{version.dataset}/{fit_folder}"
    side = version.fit.size_px or base.size_px
    fit = _job(
        "fit",
        job_name,
        folder,
        {"fit": _fitting(version.fit, method, side), "masks": dataset.masks,
         "mask_files": inputs.mask_identity(dataset, seen.hashes)},
        [scrape.made],
        ["fit.jsonl"],
        seen,
    )  # fmt: skip
    yield fit
    caption = _job(
        "caption",
        job_name,
        folder,
        {"caption": version.caption.model_dump(mode="json"), "captioner": base.captioner,
         "captioner_identity": inputs.identity_of(base.captioner, base.captioner_revision, seen.hashes),
         "captioner_revision": base.captioner_revision, "trigger": dataset.trigger, "threads": params.threads,
         "override": dataset.captions_override, "overrides": inputs.override_identity(dataset, seen.hashes)},
        [fit.made],
        ["captions.jsonl"],
        seen,
    )  # fmt: skip
    yield caption
    flip = _job(
        "flip",
        job_name,
        folder,
        {"mirror": dataset.flip and version.flip.probability > 0, "swap_words": version.flip.swap_words,
         "repeats": "kohya" if dataset.kohya_repeats else dataset.repeats,
         "kohya": None if version.flip.kohya == "none" else [version.flip.kohya, dataset.trigger]},
        [fit.made, caption.made],
        ["train/metadata.jsonl"],
        seen,
    )  # fmt: skip
    yield flip
    yield _job(
        "encode",
        f"{job_name}/encode-{version.base}",
        folder,
        {"encode": version.encode.model_dump(mode="json"), "base": _weights(base),
         "base_identity": inputs.base_identity(base, seen.hashes), "threads": params.threads},
        [flip.made],
        [f"latents/index-{version.base}.jsonl"],
        seen,
        (choices.FAMILIES[base.family],),
    )  # fmt: skip


def _index_job(params: Params, seen: Seen) -> Job:
    """The page over all versions of `run`."""
    folder = RESULTS / "report"
    inputs = [made(RESULTS / name, "evaluate") for name in params.run]
    settings = {name: summary(params.versions[name]) for name in params.run}
    recipe = {"stage": "report", **seen.maker("report", ()), "versions": settings}
    outputs = (folder / "index.html", folder / "versions.csv")
    return Job("report", "index", recipe, tuple(inputs), made(folder, "report"), outputs)


def _weights(base: Base, learning_rate_scale: float = 1.0) -> dict[str, Any]:
    """A base without what the job does not use, so that changing that does not make it run again."""
    unused = {"captioner": "-", "captioner_revision": None, "learning_rate_scale": learning_rate_scale}
    return {**base.model_dump(mode="json"), **unused}


def _resolved(train: Train, base: Base) -> dict[str, Any]:
    """A training section with every null replaced by what it means."""
    precision = train.precision(base.dtype)
    meant = {"alpha": train.scaling_alpha, "mixed_precision": precision, "cache_text": train.text_cache}
    return {**train.model_dump(mode="json"), **meant}


def _fitting(fit: Fit, method: str, side: int) -> dict[str, Any]:
    """A fitting section with its size, and without what the method does not use."""
    unused = {} if method == "bucket" else {"bucket_step_px": None, "bucket_max_aspect": None}
    return {**fit.model_dump(mode="json"), "method": method, "size_px": side, **unused}


def _train_entries(train: Train) -> list[str]:
    """What the menus mean today: an entry that leads elsewhere makes the training run again."""
    chosen = [menu[getattr(train, option)] for option, menu in MENUS.items()]
    return [*chosen, *(choices.NOISES[name] for name in train.noise)]


def summary(version: Version) -> dict[str, Any]:
    """The settings a reader compares versions by."""
    train, sample = version.train, version.sample
    return {
        "base": version.base,
        "dataset": version.dataset,
        "fit": version.fit.method,
        "rank": train.rank,
        "alpha": train.scaling_alpha,
        "learning_rate": train.learning_rate,
        "steps": train.steps,
        "optimizer": train.optimizer,
        "hires": bool(sample.hires),
    }


def dataset_records(params: Params) -> list[Path]:
    """The last records of every dataset that `run` learns from."""
    found = []
    for name in params.run:
        version = params.versions[name]
        own = set_folder(version.dataset, fit_name(params, name))
        references = set_folder(version.dataset, fit_name(params, name, "pad"))
        cached = version.train.cache_latents == "disk"
        found += [made(own, f"encode-{version.base}" if cached else "flip"), made(references, "caption")]
    return list(dict.fromkeys(found))
