"""One version's training from recipe to published checkpoints."""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from ruamel.yaml import YAML

from sdlora import choices, provenance, records, store
from sdlora.adapters import Adapter, Conditioning, load_adapter
from sdlora.errors import MissingError
from sdlora.params import Base, Flip, Train
from sdlora.train import lora
from sdlora.train.checkpoint import State, newest_state, save_state
from sdlora.train.dataset import Example, load_examples
from sdlora.train.export import FILE_NAME, write_lora
from sdlora.train.loop import Run, train_loop

LOG_COLUMNS = ("step", "loss", "learning_rate")


def train_version(
    recipe: dict[str, Any], inputs: list[Path], folder: Path, base_name: str, out: Path, keep_runs: int
) -> list[Path]:
    """Train a LoRA, or publish the one that this recipe made before.

    Args:
        recipe: Settings, base and code identity.
        inputs: Records of the dataset's jobs; part of the run's key.
        folder: Fitted dataset with latents.
        base_name: Entry of `bases`, names the latents' index.
        out: `results/<version>`.
        keep_runs: How many finished runs the store keeps.

    Returns:
        The files published.
    """
    key = provenance.sha256_text(records.canonical_json([recipe, *map(provenance.outputs_identity, inputs)]))[:32]
    kept = store.entry("train", key)
    with store.sole_use(kept):
        if (kept / "done.json").exists() and _is_undamaged(kept):
            print(f"train: these settings were trained before; publishing run {key[:12]} again", flush=True)
        else:
            _train(recipe, folder, base_name, kept)
        published = _publish(kept, out)
    store.keep_newest("train", keep_runs)
    return published


def _is_undamaged(kept: Path) -> bool:
    outputs = records.read_json(kept / "done.json")
    return all((kept / n).exists() and provenance.sha256_of(kept / n) == digest for n, digest in outputs.items())


def _train(recipe: dict[str, Any], folder: Path, base_name: str, kept: Path) -> None:
    torch.set_num_threads(recipe["threads"])
    settings = Train.model_validate_json(records.canonical_json(recipe["train"]))
    base = Base.model_validate_json(records.canonical_json(recipe["base"]))
    flip = Flip.model_validate_json(records.canonical_json(recipe["flip"]))
    from sdlora.train import preflight  # here, so that `python -m sdlora.train.preflight` finds it unloaded

    examples = load_examples(folder, base_name)
    preflight.check(settings, base, preflight.demand_of(examples))
    run = prepare(settings, flip, base, examples)
    state = newest_state(kept)
    if state is not None:
        print(f"train: resuming from step {state.step} of {settings.steps}", flush=True)

    def on_checkpoint(state: State) -> None:
        write_lora(kept / "checkpoints" / f"step-{state.step:06d}", run.adapter, settings)
        save_state(kept, state)

    log = train_loop(run, state, on_checkpoint)
    records.write_csv(
        kept / "train_log.csv", LOG_COLUMNS, ([int(s), f"{loss:.6f}", f"{lr:.8g}"] for s, loss, lr in log)
    )
    with (kept / "config.yaml").open("w", encoding="utf-8") as handle:
        YAML(typ="safe", pure=True).dump(recipe, handle)
    files = [kept / "train_log.csv", kept / "config.yaml", *sorted((kept / "checkpoints").rglob(FILE_NAME))]
    records.write_json(kept / "done.json", {str(p.relative_to(kept)): provenance.sha256_of(p) for p in files})
    shutil.rmtree(kept / "state", ignore_errors=True)


def prepare(settings: Train, flip: Flip, base: Base, examples: list[Example]) -> Run:
    """Load the base, encode every caption once, add the LoRA, build optimizer and schedule."""
    if settings.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise MissingError("mixed_precision fp16 needs a GPU; on a CPU use a base with dtype: fp32 or bf16")
    accelerator = Accelerator(mixed_precision=settings.mixed_precision, cpu=not torch.cuda.is_available())
    adapter = load_adapter(base, accelerator.device.type)
    texts = sorted({text for example in examples for text in example.text})
    conditioning = {text: adapter.encode_prompts([text]) for text in texts}
    _leave_only_unet(adapter, conditioning)
    unet = adapter.pipeline.unet
    parameters = lora.add_lora(unet, settings)
    unet.train()
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    rate = settings.learning_rate * base.learning_rate_scale
    optimizer = choices.pick(choices.OPTIMIZERS, settings.optimizer)(parameters, settings, rate)
    schedule = choices.pick(choices.LR_SCHEDULES, settings.lr_schedule)(optimizer, settings)
    optimizer = accelerator.prepare_optimizer(optimizer)
    noising = DDPMScheduler.from_config(adapter.pipeline.scheduler.config)
    return Run(settings, flip, adapter, examples, conditioning, parameters, optimizer, schedule, accelerator, noising)


def _leave_only_unet(adapter: Adapter, conditioning: dict[str, Conditioning]) -> None:
    """Give back the memory of VAE and text encoders: their outputs are cached."""
    for name in ("vae", "text_encoder", "text_encoder_2"):
        if getattr(adapter.pipeline, name, None) is not None:
            setattr(adapter.pipeline, name, None)
    if adapter.device.type == "cuda":
        torch.cuda.empty_cache()


def _publish(kept: Path, out: Path) -> list[Path]:
    names = records.read_json(kept / "done.json")
    records.publish_folder(kept / "checkpoints", out / "checkpoints")
    for name in ("train_log.csv", "config.yaml"):
        records.write_bytes(out / name, (kept / name).read_bytes())
    return [out / name for name in names]
