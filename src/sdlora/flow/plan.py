"""The DAG's names: which jobs the versions need, what each reads and where it writes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdlora import choices
from sdlora.config.animate import Animate
from sdlora.config.dataset import Dataset
from sdlora.config.params import Base, Fit, Params, StudiedParams, Version
from sdlora.config.search import Trial
from sdlora.config.sources import FolderSource
from sdlora.config.train import MENUS, Train
from sdlora.errors import ParamsError
from sdlora.flow import inputs
from sdlora.flow.makers import Seen
from sdlora.flow.networks import captioner_of, choosing, measurers, measuring, needs_of, weights_of
from sdlora.flow.recipe import Recipe
from sdlora.stages.adopt.recipe import Adopted, AdoptRecipe
from sdlora.stages.animate.recipe import AnimateRecipe
from sdlora.stages.caption.recipe import CaptionRecipe
from sdlora.stages.choose.recipe import ChooseRecipe
from sdlora.stages.encode.recipe import EncodeRecipe
from sdlora.stages.evaluate.recipe import EvaluateRecipe
from sdlora.stages.export.recipe import ExportRecipe
from sdlora.stages.fit.recipe import FitRecipe
from sdlora.stages.flip.recipe import FlipRecipe
from sdlora.stages.probe.recipe import ProbeRecipe
from sdlora.stages.report.recipe import OWN_PAGE, ReportAllRecipe, ReportRecipe
from sdlora.stages.sample.recipe import REPORT_SEEDS, DrawingRecipe, SampleRecipe
from sdlora.stages.scrape import pin
from sdlora.stages.scrape.recipe import ScrapeRecipe
from sdlora.stages.studies.recipe import StudiesRecipe, compared_of
from sdlora.stages.train.recipe import TrainRecipe


def fit_name(params: Params, name: str, method: str | None = None) -> str:
    """Folder of a version's fitted pictures, such as `pad-edge-64`."""
    version = params.versions[name]
    side = version.fit.size_px or params.bases[version.base].size_px
    method = method or version.fit.method
    fill = f"-{version.fit.fill.removeprefix('#')}" if method in ("pad", "bucket") else ""
    step, aspect = version.fit.bucket_step_px, version.fit.bucket_max_aspect
    shapes = (f"-step{step}" if step else "") + (f"-aspect{aspect:.12g}".replace(".", "p") if aspect else "")
    return f"{method}{fill}{shapes if method == 'bucket' else ''}-{side}"


def shown_fit(params: Params, name: str) -> str:
    """Folder of the fitted pictures that a version's page shows: where nothing is trained, only the padded are made."""
    return fit_name(params, name, "pad" if params.versions[name].lora is not None else None)


def version_of(params: Params, dataset: str, fit: str, base: str) -> str:
    """A version that learns from a fitted dataset with a base, or is measured against it."""
    fits = {name: {fit_name(params, name), fit_name(params, name, "pad")} for name in params.versions}
    wanted = dataset, base
    return next(n for n, one in params.versions.items() if (one.dataset, one.base) == wanted and fit in fits[n])


def set_folder(dataset: str, fit: str) -> Path:
    """Folder of one way of fitting a dataset."""
    return Path(FitRecipe.folder_pattern.format(dataset=dataset, fit=fit))


def own_folders(dataset: Dataset) -> tuple[Path, ...]:
    """The folders of a user's own among a dataset's sources."""
    return tuple(Path(source.path) for source in dataset.sources if isinstance(source, FolderSource))


def jobs(params: Params) -> list[Recipe]:
    """Every job of every version and the gathering of every dataset, in topological order, each once.

    Raises:
        ParamsError: If two versions want different things under one name.
    """
    seen = Seen()
    found: dict[Path, Recipe] = {}
    owner: dict[Path, str] = {}
    for name in params.versions:
        for recipe in _jobs_of_version(params, name, seen):
            known = found.setdefault(recipe.made, recipe)
            if known != recipe:
                raise ParamsError(
                    f"versions {owner[recipe.made]} and {name} both write {recipe.folder} but with different "
                    f"{recipe.stage} settings; give one of them its own dataset entry"
                )
            owner.setdefault(recipe.made, name)
    for name, dataset in params.datasets.items():
        recipe = _scrape(name, dataset, seen)
        found.setdefault(recipe.made, recipe)
    found_jobs = [*found.values(), _report_all(params, seen)]
    if isinstance(params, StudiedParams):
        found_jobs.append(_studies(params, seen))
    seen.save()
    return found_jobs


def _jobs_of_version(params: Params, name: str, seen: Seen) -> Iterator[Recipe]:
    version = params.versions[name]
    base, dataset = params.bases[version.base], params.datasets[version.dataset]
    yield _scrape(version.dataset, dataset, seen)
    references = set_folder(version.dataset, fit_name(params, name, "pad"))
    before: dict[tuple[str, str], Recipe] = {}
    for method in dict.fromkeys(("pad", version.fit.method)):
        for recipe in _dataset_jobs(params, name, method, seen):
            before[method, recipe.stage] = recipe
            yield recipe
    train: Recipe
    lora: Recipe
    if version.lora is None:
        train, lora = _training(params, name, before, seen)
        yield train
        yield lora
    else:
        for one in version.lora:
            if one.version is not None:
                yield from _jobs_of_version(params, one.version, seen)
        train = lora = _adopting(params, name, seen)
        yield lora
    of_version: dict[str, Any] = {"wildcards": {"version": name}}
    family = choices.FAMILIES[base.family]
    needs = needs_of(version.evaluate.metrics)
    drawing: dict[str, Any] = {
        **of_version, "base_identity": seen.of(inputs.base_identity, base), "base": weights_of(base),
        "threads": params.threads, "size_px": version.fit.size_px or base.size_px, "references": references,
        "trigger": dataset.trigger if "untriggered" in needs else None, "validation": version.evaluate.validation,
    }  # fmt: skip
    drawn = base.guiding(version.sample)
    painters = (family, choices.SCHEDULERS[drawn.scheduler])
    maker = seen.maker(SampleRecipe, painters)
    sample = SampleRecipe(
        **drawing, **maker, inputs=(train.made, before["pad", "caption"].made),
        sample=drawn.model_copy(update={"report_seeds": REPORT_SEEDS}),
    )  # fmt: skip
    yield sample
    rule = choosing(version.evaluate)
    choose = ChooseRecipe(
        **drawing, **seen.maker(ChooseRecipe, (*painters, *measurers(rule, version, base))),
        inputs=(sample.made, before["pad", "fit"].made), sample=drawn, chosen=version.chosen,
        drawing_code=maker["code"], drawing_software=maker["software"], **measuring(rule, params, name, seen),
    )  # fmt: skip
    yield choose
    if isinstance(version, Trial) and isinstance(train, TrainRecipe):
        yield from _probes(version, base, train, sample, choose, seen)
    evaluate = EvaluateRecipe(
        **of_version, **seen.maker(EvaluateRecipe, measurers(version.evaluate, version, base)),
        inputs=(sample.made, choose.made, before["pad", "fit"].made), references=references,
        **measuring(version.evaluate, params, name, seen),
    )  # fmt: skip
    yield evaluate
    if version.animate is not None:
        yield _animating(version.animate, sample, choose, seen)
    yield _report(params, name, (evaluate.made, lora.made), seen)


def _probes(
    version: Trial, base: Base, train: TrainRecipe, sample: SampleRecipe, choose: ChooseRecipe, seen: Seen
) -> Iterator[ProbeRecipe]:
    """A trial's measurements: at some checkpoints on its way, and of all where it ends."""
    entries = (*_train_entries(version.train), *sample.entries, *measurers(choose.evaluate, version, base))
    before = tuple(dict.fromkeys((*train.inputs, *sample.inputs[1:], *choose.inputs[1:])))
    for step in version.probes:
        last = step == version.probes[-1]
        yield ProbeRecipe(
            **{name: getattr(sample, name) for name in DrawingRecipe.model_fields if name not in Recipe.model_fields},
            **{name: getattr(choose, name) for name in ("evaluate", "learning", "describing", "networks")},
            **seen.maker(ProbeRecipe, entries), wildcards={**sample.wildcards, "step": str(step)}, inputs=before,
            training=train, steps=(0, *train.checkpoint_steps) if last else (0, step),
            drawing_code=choose.drawing_code, drawing_software=choose.drawing_software,
        )  # fmt: skip


def _animating(animate: Animate, sample: SampleRecipe, choose: ChooseRecipe, seen: Seen) -> AnimateRecipe:
    """A film of what the chosen checkpoint drew."""
    return AnimateRecipe(
        wildcards=sample.wildcards, **seen.maker(AnimateRecipe, ()), inputs=(sample.made, choose.made),
        threads=sample.threads, animate=animate,
        model_identity=seen.of(inputs.identity_of, animate.model, animate.revision),
    )  # fmt: skip


def _training(
    params: Params, name: str, before: dict[tuple[str, str], Recipe], seen: Seen
) -> tuple[TrainRecipe, ExportRecipe]:
    """train and export of a version."""
    version = params.versions[name]
    base, dataset = params.bases[version.base], params.datasets[version.dataset]
    own = version.fit.method
    of_version: dict[str, Any] = {"wildcards": {"version": name}}
    base_identity = seen.of(inputs.base_identity, base)
    family = choices.FAMILIES[base.family]
    cached = version.train.cache_latents == "disk"
    resolved = resolved_train(version.train, base)
    train = TrainRecipe(
        **of_version, **seen.maker(TrainRecipe, (family, *_train_entries(version.train))),
        inputs=tuple(before[own, stage].made for stage in (("flip", "encode") if cached else ("flip",))),
        base=weights_of(base, base.learning_rate_scale, drawing=version.train.prior is not None),
        base_identity=base_identity, threads=params.threads, train=resolved,
        flip=version.flip.model_copy(update={"kohya": "none"}), checkpoint_steps=tuple(version.train.checkpoint_steps),
        trigger=dataset.trigger, encode=None if cached else version.encode,
        dataset=before[own, "flip"].folder, base_name=version.base, keep_runs=params.keep_runs,
        sample=version.sample, size_px=version.fit.size_px or base.size_px,
    )  # fmt: skip
    export = ExportRecipe(
        **of_version, **seen.maker(ExportRecipe, (family,)), inputs=(train.made,),
        version=name, train=resolved, base=weights_of(base, base.learning_rate_scale),
        base_identity=base_identity, export=version.export,
    )  # fmt: skip
    return train, export


def _adopting(params: Params, name: str, seen: Seen) -> AdoptRecipe:
    """In the place of train and export, where a version names a LoRA."""
    version = params.versions[name]
    base = params.bases[version.base]
    loras, records = [], []
    for one in version.lora or ():
        average = False
        if one.version is not None:
            needed: list[type[Recipe]] = [TrainRecipe] if one.step else [TrainRecipe, EvaluateRecipe]
            records += [Path(kind.made_pattern().format(version=one.version)) for kind in needed]
            average = params.versions[one.version].sample.average
        loras.append(
            Adopted(
                file=one.file, file_identity=seen.of(inputs.lora_identity, one.file), version=one.version,
                step=one.step, average=average, weight=one.weight,
            )
        )  # fmt: skip
    return AdoptRecipe(
        wildcards={"version": name}, **seen.maker(AdoptRecipe, (choices.FAMILIES[base.family],)),
        inputs=tuple(dict.fromkeys(records)), version=name, loras=tuple(loras), base=weights_of(base),
        base_identity=seen.of(inputs.base_identity, base),
    )  # fmt: skip


def _scrape(name: str, dataset: Dataset, seen: Seen) -> ScrapeRecipe:
    """The job that gathers a dataset; what comes from the web is pinned, so code and packages say nothing about it."""
    entries = tuple(dict.fromkeys(choices.SOURCES[source.kind] for source in dataset.sources))
    maker = seen.maker(ScrapeRecipe, entries)
    if pin.uses_web(dataset):
        maker = {**maker, "code": None, "software": {}}
    files = seen.of(inputs.source_files, dataset.sources)
    return ScrapeRecipe(wildcards={"dataset": name}, **maker, dataset=dataset, files=files)


def may_scrape(params: Params, recipe: ScrapeRecipe, forced: bool) -> None:
    """Called before a scrape job is planned.

    Raises:
        SdloraError: If its pictures are neither there nor may be scraped now; the message says what to do.
    """
    pin.may_run(recipe, params.scraping, forced)


def _dataset_jobs(params: Params, name: str, method: str, seen: Seen) -> Iterator[Recipe]:
    """fit, caption, flip and encode of a version's dataset, for one method of fitting."""
    version = params.versions[name]
    base, dataset = params.bases[version.base], params.datasets[version.dataset]
    of_set = {"dataset": version.dataset, "fit": fit_name(params, name, method)}
    fit = FitRecipe(
        wildcards=of_set, **seen.maker(FitRecipe, ()),
        inputs=(Path(ScrapeRecipe.made_pattern().format(**of_set)),),
        fit=_fitting(version.fit, method, version.fit.size_px or base.size_px), masks=dataset.masks,
        mask_files=seen.of(inputs.mask_identity, dataset.masks),
    )  # fmt: skip
    yield fit
    caption = CaptionRecipe(
        wildcards=of_set, **seen.maker(CaptionRecipe, (choices.CAPTIONERS[version.caption.by],)), inputs=(fit.made,),
        caption=version.caption, **captioner_of(version, base, seen), trigger=dataset.trigger, threads=params.threads,
        override=dataset.captions_override, overrides=seen.of(inputs.override_identity, dataset.captions_override),
        undesired_tags=dataset.undesired_tags,
    )  # fmt: skip
    yield caption
    mirror = dataset.flip and version.flip.probability > 0
    flip = FlipRecipe(
        wildcards=of_set, **seen.maker(FlipRecipe, ()), inputs=(fit.made, caption.made),
        mirror=mirror, swap_words=version.flip.swap_words,
        trigger=dataset.trigger if mirror and version.flip.swap_words else "",
        repeats="kohya" if dataset.kohya_repeats else dataset.repeats,
        kohya=None if version.flip.kohya == "none" else (version.flip.kohya, dataset.trigger),
    )  # fmt: skip
    yield flip
    yield EncodeRecipe(
        wildcards={**of_set, "base": version.base}, **seen.maker(EncodeRecipe, (choices.FAMILIES[base.family],)),
        inputs=(flip.made,), encode=version.encode, base=weights_of(base),
        base_identity=seen.of(inputs.base_identity, base), threads=params.threads,
    )  # fmt: skip


def _report(params: Params, name: str, before: tuple[Path, ...], seen: Seen) -> ReportRecipe:
    """The page of a version."""
    version = params.versions[name]
    return ReportRecipe(
        wildcards={"version": name}, **seen.maker(ReportRecipe, ()), inputs=before,
        version=name, settings=summary(version), average=version.sample.average,
        references=set_folder(version.dataset, fit_name(params, name, "pad")),
        dataset=set_folder(version.dataset, shown_fit(params, name)),
        folders=own_folders(params.datasets[version.dataset]), votes=seen.of(inputs.votes_identity),
    )  # fmt: skip


def _report_all(params: Params, seen: Seen) -> ReportAllRecipe:
    """The page over all versions of `run`."""
    measured = tuple(Path(EvaluateRecipe.made_pattern().format(version=name)) for name in params.made)
    settings = {name: summary(params.versions[name]) for name in params.made}
    names = {name: params.versions[name].dataset for name in params.made}
    return ReportAllRecipe(
        wildcards={}, **seen.maker(ReportAllRecipe, ()), inputs=measured, versions=settings,
        references={name: set_folder(of, fit_name(params, name, "pad")) for name, of in names.items()},
        datasets={name: set_folder(of, shown_fit(params, name)) for name, of in names.items()},
        folders={name: own_folders(params.datasets[of]) for name, of in names.items()},
        votes=seen.of(inputs.votes_identity),
        trainings={name: tuple(params.trainings(name)) for name in params.run if len(params.trainings(name)) > 1},
    )  # fmt: skip


def _studies(params: StudiedParams, seen: Seen) -> StudiesRecipe:
    """What the studies found."""
    compared = compared_of(params)
    trainings = dict.fromkeys(name for one in compared for name in (*one.without, *one.changed_to))
    return StudiesRecipe(
        wildcards={}, **seen.maker(StudiesRecipe, ()), compared=compared,
        inputs=tuple(Path(EvaluateRecipe.made_pattern().format(version=name)) for name in trainings),
        starts={one.starts_from: summary(params.versions[one.starts_from]) for one in compared},
    )  # fmt: skip


def resolved_train(train: Train, base: Base) -> Train:
    """A training section with every null replaced by what it means."""
    precision = train.precision(base.dtype)
    meant = {"alpha": train.scaling_alpha, "mixed_precision": precision, "cache_text": train.text_cache, "seeds": 1}
    return train.model_copy(update=meant | train.dependent())


def _fitting(fit: Fit, method: str, side: int) -> Fit:
    """A fitting section with its size, and without what the method does not use."""
    unused: dict[str, Any] = {} if method == "bucket" else {"bucket_step_px": None, "bucket_max_aspect": None}
    if method == "center_crop":  # nothing is padded
        unused["fill"] = Fit().fill
    return fit.model_copy(update={"method": method, "size_px": side, **unused})


def _train_entries(train: Train) -> list[str]:
    """What the menus mean today: an entry that leads elsewhere makes the training run again."""
    chosen = [menu[getattr(train, option)] for option, menu in MENUS.items()]
    return [*chosen, *(choices.NOISES[name] for name in train.noise)]


def summary(version: Version) -> dict[str, Any]:
    """The settings a reader compares versions by."""
    train = version.train
    trained = {
        "rank": train.rank,
        "alpha": train.scaling_alpha,
        "learning_rate": train.learning_rate,
        "steps": train.steps,
        "optimizer": train.optimizer,
    }
    return {
        "base": version.base,
        "dataset": version.dataset,
        "fit": version.fit.method,
        **(trained if version.lora is None else dict.fromkeys(trained)),
        "hires": bool(version.sample.hires),
        "remark": version.remark,
    }


def pages(params: Params) -> list[str]:
    """The page of every version that `run` makes."""
    return [f"{ReportRecipe.folder_pattern.format(version=name)}/{OWN_PAGE}" for name in params.made]


def dataset_records(params: Params) -> list[Path]:
    """The last records of every dataset that `run` learns from."""
    found = []
    for name in params.run:
        version = params.versions[name]
        own = {"dataset": version.dataset, "fit": fit_name(params, name), "base": version.base}
        padded = {**own, "fit": fit_name(params, name, "pad")}
        last = EncodeRecipe if version.train.cache_latents == "disk" else FlipRecipe
        found += [Path(last.made_pattern().format(**own)), Path(CaptionRecipe.made_pattern().format(**padded))]
    return list(dict.fromkeys(found))
