"""Draw references' prompts at checkpoints; step 0 is the base without a LoRA."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sdlora import choices, determinism, gpu, records
from sdlora.config.params import Base
from sdlora.config.sample import Sample
from sdlora.flow import hashing, store
from sdlora.images.pictures import png_bytes
from sdlora.lora.attach import Fused, attach_lora, detach_lora, fuse_lora, unfuse_lora
from sdlora.lora.names import EMBEDDINGS, file_in
from sdlora.lora.pivotal import attach_embeddings, detach_embeddings, with_token
from sdlora.memory import preflight
from sdlora.models import ModelFamily, load_model
from sdlora.progress import Progress
from sdlora.randomness import generator
from sdlora.stages.caption.caption import leading
from sdlora.stages.sample.drawing import (
    check_drawing,
    enlarged,
    hires_steps,
    last_side,
    sampler_of,
    set_decoding,
    told,
)
from sdlora.stages.sample.parts import FOLDERS, INDEX, UNTRIGGERED, VALIDATION, split
from sdlora.stages.sample.recipe import DrawingRecipe, SampleRecipe

OTHER_PROMPTS = ("negative_prompt", "second_prompt", "second_negative_prompt")  # of all pictures
KEPT_SETS = 1000  # sets of pictures in the store, one a checkpoint, seed and setting


@dataclass(frozen=True)
class Prompt:
    """What is drawn: a reference's id, its caption and a seed."""

    reference: str
    text: str
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.reference}-seed{self.seed}.png"

    def without(self, trigger: str) -> "Prompt":
        """The same without the trigger, which comes first in each caption."""
        found = leading(trigger).match(self.text)
        return Prompt(self.reference, self.text[found.end() :] if found else self.text, self.seed)


class Painter:
    """The base loaded once, adapters swapped over it; loaded when the first picture needs it."""

    def __init__(self, base: Base, settings: Sample, size_px: int) -> None:
        self._base, self._settings, self._size_px = base, settings, size_px
        self._adapter: ModelFamily | None = None
        self._img2img: Any = None
        self._trigger: str | None = None  # whose learnt embeddings are attached
        self._fused: Fused = []

    def _load(self) -> ModelFamily:
        check_drawing(self._settings, choices.pick(choices.FAMILIES, self._base.family))
        model = load_model(self._base)
        model.pipeline.scheduler = sampler_of(self._settings, model)
        side = last_side(self._settings, self._size_px, model.resolution_multiple)
        set_decoding(model.pipeline.vae, self._settings, self._base, side)
        if self._settings.hires is not None:
            self._img2img = model.img2img_pipeline()
        return model

    def use(self, lora: Path | None) -> None:
        """Put a LoRA file in place of the one before; None draws with the base alone.

        Embeddings that were learnt along lie beside the file and stand for the trigger in every prompt.
        """
        self._adapter = self._adapter or self._load()
        pipeline = self._adapter.pipeline
        unfuse_lora(self._fused)
        self._fused = []
        detach_lora(pipeline)
        if self._trigger is not None:
            detach_embeddings(pipeline, self._trigger)
            self._trigger = None
        if lora is not None:
            attach_lora(pipeline, lora, self._settings.lora_scale)
            self._adapter.speed.lora_added(self._adapter.denoiser)
            if self._settings.fuse_lora:
                self._fused = fuse_lora(pipeline)
            if (lora.parent / EMBEDDINGS).exists():
                self._trigger = attach_embeddings(pipeline, lora.parent / EMBEDDINGS)

    def draw(self, prompts: Sequence[Prompt]) -> list[Image.Image]:
        """One picture a prompt, all at once; the noise of each is a function of its (seed, reference) alone.

        With hires fix the pictures are enlarged and denoised again, image to image.
        """
        if self._adapter is None:
            raise RuntimeError("call use() first")
        settings, trigger = self._settings, self._trigger
        texts = [prompt.text for prompt in prompts]
        if trigger is not None:
            texts = [with_token(text, trigger) for text in texts]
            others = {name: getattr(settings, name) for name in OTHER_PROMPTS}
            said = {name: with_token(text, trigger) for name, text in others.items() if text is not None}
            settings = settings.model_copy(update=said)
        shared, hires = told(settings, self._adapter, texts), settings.hires
        drawn = self._adapter.pipeline(
            **shared,
            num_inference_steps=settings.inference_steps,
            height=self._size_px,
            width=self._size_px,
            output_type="latent" if hires is not None and hires.upscale == "latent" else "pil",
            generator=[generator("sample", prompt.seed, prompt.reference) for prompt in prompts],
        ).images
        if hires is not None:
            side = last_side(settings, self._size_px, self._adapter.resolution_multiple)
            drawn = self._img2img(
                **shared,
                num_inference_steps=hires_steps(settings, hires),
                image=enlarged(drawn, hires, (side, side), self._adapter),
                strength=hires.denoising_strength,
                generator=[generator("hires", prompt.seed, prompt.reference) for prompt in prompts],
            ).images
        images: list[Image.Image] = drawn
        return images


def parts_of(recipe: DrawingRecipe) -> tuple[list[records.Row], list[records.Row]]:
    """The captioned references that choose, and those that report, by id."""
    rows = records.read_jsonl(recipe.references / "captions.jsonl")
    references = sorted((row for row in rows if row["split"] == "reference"), key=lambda row: str(row["id"]))
    return split(references[: recipe.sample.max_references], recipe.validation)


def prompts_of(references: Sequence[records.Row], seeds: Sequence[int]) -> list[Prompt]:
    """Each reference's prompt with every seed, seed after seed."""
    return [Prompt(row["id"], row["caption"], seed) for seed in dict.fromkeys(seeds) for row in references]


def loras_of(recipe: DrawingRecipe) -> dict[int, Path | None]:
    """Each checkpoint's LoRA, as the version draws with it; step 0 has none."""
    found = sorted((recipe.folder / "checkpoints").glob("step-*"))
    return {0: None, **{int(path.name.removeprefix("step-")): file_in(path, recipe.sample.average) for path in found}}


def sample_version(recipe: SampleRecipe) -> list[Path]:
    """Draw, at step 0 and at every checkpoint, the prompts of the references that choose.

    Args:
        recipe: Base, settings, code identity. The LoRAs are read from `checkpoints/` of the version's folder, and
            the pictures are written to its `samples/`: `step-000000/…`, `index.jsonl`.

    Returns:
        The files written.
    """
    validation, _ = parts_of(recipe)
    prompts = prompts_of(validation, recipe.sample.seeds)
    return draw(recipe, prompts, loras_of(recipe), recipe.folder / FOLDERS[VALIDATION])


def draw(recipe: DrawingRecipe, prompts: Sequence[Prompt], loras: Mapping[int, Path | None], out: Path) -> list[Path]:
    """Draw some prompts at some steps, step 0 first: a broken setup shows before any LoRA is put on.

    Pictures are kept by (weights, seed, prompts, settings), so step 0 is drawn once for all versions that share it, a
    further seed or checkpoint costs its own pictures alone, and a killed run goes on at the batch it was at.

    Args:
        recipe: Base, settings, code identity.
        prompts: What is drawn, seed after seed.
        loras: Step -> the LoRA's file; None is the base alone.
        out: The folder that gets `step-000000/…` and `index.jsonl`; other pictures in it are deleted.

    Returns:
        The files written; with a trigger in the recipe also `untriggered.jsonl` and the same prompts without it.
    """
    torch.set_num_threads(recipe.threads)
    determinism.choose(deterministic=True)
    preflight.check_drawing(recipe.sample, recipe.size_px, recipe.base)
    painter = Painter(recipe.base, recipe.sample, recipe.size_px)
    sets = {INDEX: [*prompts]}
    if recipe.trigger is not None:
        sets[UNTRIGGERED] = [prompt.without(recipe.trigger) for prompt in prompts]
    progress = Progress(recipe.stage, len(loras) * len(prompts) * len(sets))
    rows: dict[str, list[records.Row]] = {name: [] for name in sets}
    for step in sorted(loras):
        for name, wanted in sets.items():
            below = Path(f"step-{step:06d}") / ("" if name == INDEX else name.removesuffix(".jsonl"))
            for seed in dict.fromkeys(prompt.seed for prompt in wanted):
                own = [prompt for prompt in wanted if prompt.seed == seed]
                rows[name] += _publish(painter, recipe, step, loras[step], own, out, below, progress)
    files = [out / row["file"] for found in rows.values() for row in found]
    for stale in set(out.rglob("step-*/**/*.png")) - set(files):
        stale.unlink()
    (out / UNTRIGGERED).unlink(missing_ok=True)
    store.keep_newest("sample", KEPT_SETS)
    for name, found in rows.items():
        records.write_jsonl(out / name, found)
    return [*(out / name for name in rows), *files]


def _publish(
    painter: Painter,
    recipe: DrawingRecipe,
    step: int,
    lora: Path | None,
    prompts: Sequence[Prompt],
    out: Path,
    below: Path,
    progress: Progress,
) -> list[records.Row]:
    """Draw what the store does not have of one step and seed, and put all of it below `out`; the index's rows."""
    size, rows = recipe.sample.batch_size, []
    batches = [prompts[first : first + size] for first in range(0, len(prompts), size)]
    kept = store.entry("sample", _key(recipe, lora, prompts))
    with store.sole_use(kept, wait=True), gpu.told_when_it_fails(lambda: _smaller(recipe.sample)):
        _draw_missing(painter, lora, batches, kept, progress)
        for prompt in prompts:
            records.write_bytes(out / below / prompt.file_name, (kept / prompt.file_name).read_bytes())
            file = (below / prompt.file_name).as_posix()
            row = {"step": step, "reference": prompt.reference, "seed": prompt.seed, "file": file}
            rows.append({**row, "prompt": prompt.text})
    return rows


def _smaller(settings: Sample) -> str:
    """What takes less memory while drawing."""
    ways = [f"sample.batch_size: 1 (it is {settings.batch_size})"] if settings.batch_size > 1 else []
    ways += ["sample.decode: tiled"] if settings.decode != "tiled" else []
    ways += ["no sample.hires"] if settings.hires is not None else []
    return f"less is taken by {' or '.join([*ways, 'a smaller fit.size_px'])}"


def _key(recipe: DrawingRecipe, lora: Path | None, prompts: Sequence[Prompt]) -> str:
    settings = recipe.drawing()
    if lora is None:  # the strength of a LoRA says nothing about the base alone
        unused = ("lora_scale", "weights")
        settings["sample"] = {key: value for key, value in settings["sample"].items() if key not in unused}
    # what is drawn with; files for other tools lie beside it
    read = [lora, lora.with_name(EMBEDDINGS)] if lora else []
    weights = [hashing.sha256_of(path) for path in read if path.exists()] or "base"
    return hashing.sha256_text(records.canonical_json([settings, weights, [vars(p) for p in prompts]]))[:32]


def _draw_missing(
    painter: Painter, lora: Path | None, batches: Sequence[Sequence[Prompt]], kept: Path, progress: Progress
) -> None:
    """Draw what is not whole in the store; `hashes.json` tells damaged pictures from whole ones.

    A batch is drawn as a whole or not at all: the last bits of a picture depend on its batch mates.
    """
    hashes_file = kept / "hashes.json"
    found = hashing.read_regular(hashes_file)
    hashes = found if isinstance(found, dict) else {}
    ready = False
    for batch in batches:
        paths = [kept / prompt.file_name for prompt in batch]
        if not all(path.exists() and hashing.sha256_of(path) == hashes.get(path.name) for path in paths):
            if not ready:
                painter.use(lora)
                ready = True
            for path, image in zip(paths, painter.draw(batch), strict=True):
                records.write_bytes(path, png_bytes(image))
                hashes[path.name] = hashing.sha256_of(path)
            records.write_json(hashes_file, hashes)
        progress.advance(len(batch))
