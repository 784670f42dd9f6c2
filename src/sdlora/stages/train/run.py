"""One version's training from recipe to checkpoints."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import check_cuda_p2p_ib_support
from ruamel.yaml import YAML

from sdlora import choices, determinism, gpu, records
from sdlora.config.params import Base, Encode, Flip
from sdlora.config.train import Train
from sdlora.errors import Diverged
from sdlora.flow import hashing, store
from sdlora.flow.identity import Identity, identity_of, run_key
from sdlora.lora import pivotal, types
from sdlora.lora.diffusers_file import write_lora
from sdlora.lora.metadata import rate_scale
from sdlora.lora.names import AVERAGE
from sdlora.memory import preflight
from sdlora.models import ModelFamily, load_model
from sdlora.models.family import first_loaded
from sdlora.models.loading import trained_base
from sdlora.stages.train import latents, prior, processes, texts
from sdlora.stages.train.about import write_about
from sdlora.stages.train.checkpoint import (
    CHECKPOINTS,
    State,
    clear_leftovers,
    keep_states,
    newest_manifest,
    newest_state,
    save_state,
    told_when_full,
    what_is_kept,
)
from sdlora.stages.train.compiled import compile_blocks
from sdlora.stages.train.data import prepare_data
from sdlora.stages.train.dataset import BatchOrder, Example, load_examples
from sdlora.stages.train.longer import go_on, is_undamaged
from sdlora.stages.train.loop import Run, holding, passes_of, train_loop
from sdlora.stages.train.optimizers import Groups, point_to_save
from sdlora.stages.train.processes import Share
from sdlora.stages.train.recipe import DONE, TrainRecipe
from sdlora.stages.train.texts import ConditioningOf

WAITING = timedelta(days=1)  # of the other processes, while the first fills caches and draws the prior
LOG_COLUMNS = ("step", "loss", "learning_rate", "d")  # d: Prodigy's factor on the rate; 1 for the others


def train_version(recipe: TrainRecipe) -> list[Path]:
    """Train a LoRA, or publish the one that this recipe made before; another process at work on it is waited for.

    Returns:
        The files published.
    """
    key = run_key(recipe.identity(), recipe.inputs)
    kept = store.entry("train", key)
    with store.sole_use(kept, wait=True) as lock, told_when_full(kept):
        if _is_done(kept):
            print(f"train: these settings were trained before; publishing run {key[:12]} again", flush=True)
        else:
            _train(recipe, kept, lock)
        published = _publish(kept, recipe.folder)
    store.keep_newest("train", recipe.keep_runs, DONE)
    return published


def train_until(recipe: TrainRecipe, step: int) -> None:
    """Train as far as a checkpoint, in the store alone; whoever trains on does so from its state.

    Args:
        recipe: The whole training.
        step: One of its checkpoints.
    """
    kept = store.entry("train", run_key(recipe.identity(), recipe.inputs))
    with store.sole_use(kept, wait=True) as lock, told_when_full(kept):
        done = _is_done(kept)
        reached = newest_manifest(kept)
        if not done and (reached is None or reached.step < step):
            _train(recipe, kept, lock, step)
    store.keep_newest("train", recipe.keep_runs, DONE)


class _Reached(Exception):
    """The checkpoint that a training was to stop at is written."""


def _is_done(kept: Path) -> bool:
    """Whether a kept run is finished and whole; one that is damaged will be trained anew."""
    if not (kept / DONE).exists():
        return False
    if is_undamaged(kept):
        return True
    shutil.rmtree(kept / "state", ignore_errors=True)  # its last state would not bring back its checkpoints
    (kept / DONE).unlink()
    return False


def _publish(kept: Path, out: Path) -> list[Path]:
    """Copy a finished run from the store to `results/<version>`."""
    names = [*records.read_json(kept / DONE)]
    records.publish_folder(kept / CHECKPOINTS, out / CHECKPOINTS)
    for name in names:
        if not name.startswith(f"{CHECKPOINTS}/"):
            records.write_bytes(out / name, (kept / name).read_bytes())
    return [out / name for name in names]


def _train(recipe: TrainRecipe, kept: Path, lock: int, until: int | None = None) -> None:
    """Refuse what would not fit, and train in this process or in several."""
    torch.set_num_threads(recipe.threads)
    examples = _examples_of(recipe)
    drawing = None if recipe.sample is None else (recipe.sample, recipe.size_px)
    one = recipe.train.of_one_process
    demand = preflight.demand_of(examples, one, recipe.base, recipe.encode)
    preflight.check(one, recipe.base, demand, drawing=drawing, beside=recipe.train.processes)
    clear_leftovers(kept)
    if recipe.train.processes > 1:
        processes.launch(recipe, kept, lock, until)
    else:
        _train_here(recipe, kept, examples, until)


def train_share(recipe: TrainRecipe, kept: Path, until: int | None) -> None:
    """One of several processes that train together, in a folder that the process which started them holds."""
    torch.set_num_threads(recipe.threads)
    _train_here(recipe, kept, _examples_of(recipe), until)


def _examples_of(recipe: TrainRecipe) -> list[Example]:
    return load_examples(recipe.dataset, recipe.base_name, recipe.train.cache_latents)


def _train_here(recipe: TrainRecipe, kept: Path, examples: list[Example], until: int | None) -> None:
    settings, base = recipe.train.of_one_process, recipe.base

    def advice() -> str:
        return preflight.ways(settings, base, preflight.demand_of(examples, settings, base, recipe.encode))

    def safe() -> str:
        return f"{what_is_kept(kept)}: start again, and training goes on from there"

    with gpu.told_when_it_fails(advice, safe), _told_what_is_left(kept):
        _steps(recipe, identity_of(recipe.identity(), recipe.inputs), kept, examples, until)


@contextmanager
def _told_what_is_left(kept: Path) -> Iterator[None]:
    """A training that diverged names the last state that is sound, and the LoRA of it."""
    try:
        yield
    except Diverged as error:
        raise Diverged(f"{error}; {what_is_kept(kept)}, and so are the LoRAs below {kept / CHECKPOINTS}") from None


def _steps(recipe: TrainRecipe, identity: Identity, kept: Path, examples: list[Example], until: int | None) -> None:
    settings = recipe.train
    run = prepare(settings, recipe.flip, recipe.base, examples, recipe.encode, recipe.base_identity, recipe.trigger)
    first = run.accelerator.is_main_process
    with run.accelerator.main_process_first():  # who takes over another run's state writes it here, for all
        state = newest_state(kept, identity)
        if state is not None:
            print(f"train: resuming from step {state.step} of {settings.steps}", flush=True)
        elif first:
            state = go_on(kept, identity, settings)

    def stop_at(state: State | None) -> None:
        if until is not None and state is not None and until <= state.step < settings.steps:
            raise _Reached

    def on_checkpoint(state: State) -> None:
        if first:
            write_checkpoint(run, kept / CHECKPOINTS / f"step-{state.step:06d}")
            save_state(kept, state, identity)
        stop_at(state)

    with suppress(_Reached):
        stop_at(state)  # where a shorter training was gone on with
        log = train_loop(run, state, on_checkpoint)
        if first:
            _finish(recipe, run, kept, log)
    run.accelerator.end_training()


def _finish(recipe: TrainRecipe, run: Run, kept: Path, log: list[list[float]]) -> None:
    """Write what is left to write, and last that the run is whole."""
    records.write_csv(
        kept / "train_log.csv",
        LOG_COLUMNS,
        ([int(s), f"{loss:.6f}", f"{lr:.8g}", f"{d:.8g}"] for s, loss, lr, d in log),
    )
    with (kept / "config.yaml").open("w", encoding="utf-8") as handle:
        YAML(typ="safe", pure=True).dump(recipe.identity(), handle)
    about = write_about(kept / CHECKPOINTS, run, recipe.trigger)
    weights = sorted((kept / CHECKPOINTS).rglob("*.safetensors"))
    files = [about, kept / "train_log.csv", kept / "config.yaml", *weights]
    records.write_json(kept / DONE, {str(p.relative_to(kept)): hashing.sha256_of(p) for p in files})
    keep_states(kept, 1)  # a version with more steps goes on from it


def write_checkpoint(run: Run, folder: Path) -> None:
    """Write the LoRA, its average below `ema/` and learnt embeddings, as the settings want them."""
    settings = run.settings
    for target, values in ((folder, point_to_save(run.optimizer, run.parameters)), (folder / AVERAGE, run.average)):
        if target != folder and values is None:
            continue
        with holding(run.parameters, values):
            write_lora(target, run.model, settings, run.initial)
            if settings.pivotal is not None:
                pivotal.write(target, run.model.pipeline, run.trigger)


def _add_trained(model: ModelFamily, settings: Train, base: Base, trigger: str) -> Groups:
    """Add the LoRA, and the embedding that pivotal tuning learns; the optimizer's groups with their rates."""
    pipeline = model.pipeline
    types.add_lora(model, settings)
    model.denoiser.train()
    if settings.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        model.speed.memory_first()  # who computes twice wants memory rather than speed
    scale = rate_scale(settings, base)
    groups = types.parameter_groups(model, settings, scale)
    if settings.pivotal is not None:
        rate = settings.pivotal.learning_rate * scale
        groups.append({"params": pivotal.add(pipeline, settings.pivotal, trigger), "lr": rate, "weight_decay": 0.0})
    return groups


def _prior_examples(model: ModelFamily, settings: Train, base: Base, identity: str) -> list[Example]:
    """The pictures of prior preservation, drawn where they are not there yet; none without it."""
    if settings.prior is None:
        return []
    return prior.examples(model, settings.prior, identity, settings.seed, base)


def _over_prior(run: Run, kept: list[Example]) -> Run:
    """The same run over the prior's pictures."""
    order = BatchOrder.of(kept, run.settings.seed, run.settings.batch_size)
    return replace(run, examples=kept, order=order, latents_of=latents.cached)


def _conditioning_of(
    model: ModelFamily, settings: Train, cached: ConditioningOf, accelerator: Accelerator, trigger: str
) -> ConditioningOf:
    """Where a batch's conditioning comes from: the cache, or text encoders that learn."""
    if not settings.learns_text:
        return cached
    spoken = pivotal.spoken(trigger) if settings.pivotal is not None else None
    return texts.learning(model, accelerator.autocast, spoken)


def allow_older_drivers() -> None:
    """Say what accelerate asks for beside several RTX 40 with a driver below 550.40, as `accelerate launch` does.

    Without it accelerate does not start, even for a process of one card.
    """
    if not check_cuda_p2p_ib_support():
        for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
            os.environ.setdefault(name, "1")


def _accelerator(settings: Train) -> Accelerator:
    if torch.cuda.is_available():
        allow_older_drivers()
    return Accelerator(
        mixed_precision=settings.mixed_precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAITING)],
    )


def prepare(
    settings: Train,
    flip: Flip,
    base: Base,
    examples: list[Example],
    encode: Encode | None = None,
    identity: str = "",
    trigger: str = "",
) -> Run:
    """Load the base, make what its draws need, add the LoRA, build optimizer and schedule.

    Args:
        settings: The training section.
        flip: Mirroring.
        base: The base.
        examples: What is learnt.
        encode: How latents are made, where they are not read from the cache.
        identity: Which weights the base has: part of the name of what is kept between runs.
        trigger: Must not be cut off; pivotal tuning learns its embedding.
    """
    gpu.check(settings, base, gpu.found())
    accelerator = _accelerator(settings)
    determinism.choose(settings.deterministic)
    base = trained_base(base, settings, accelerator.device)
    first = first_loaded(base, settings)
    model = load_model(base, accelerator.device.type, first)
    model.check(settings)
    with accelerator.main_process_first():  # one process fills the caches on disk
        kept = _prior_examples(model, settings, base, identity)
        also = [text for example in kept for text in example.text]
        data = prepare_data(settings, base, model, examples, encode or Encode(), identity, trigger, also)
    if "denoiser" not in first:
        model.load("denoiser")
    groups = _add_trained(model, settings, base, trigger)
    parameters = [p for group in groups for p in group["params"]]
    optimizer = choices.pick(choices.OPTIMIZERS, settings.optimizer)(groups, settings)
    schedule = choices.pick(choices.LR_SCHEDULES, settings.lr_schedule)(optimizer, settings)
    run = Run(
        settings=settings,
        flip=flip,
        model=model,
        examples=data.examples,
        order=BatchOrder.of(data.examples, settings.seed, settings.batch_size),
        latents_of=data.latents_of,
        conditioning_of=_conditioning_of(model, settings, data.conditioning_of, accelerator, trigger),
        parameters=parameters,
        optimizer=accelerator.prepare_optimizer(optimizer),
        lr_schedule=schedule,
        accelerator=accelerator,
        objective=model.objective(settings),
        average=None if settings.ema is None else [p.detach().clone() for p in parameters],
        trigger=trigger,
        initial=types.initial_tensors(model.denoiser, settings),
        share=Share.of(settings, accelerator),
    )
    run.prior = _over_prior(run, kept) if kept else None
    run.passes = passes_of(run)
    if settings.compile == "blocks":
        compile_blocks(run)
    return run


if __name__ == "__main__":
    processes.work(train_share)
