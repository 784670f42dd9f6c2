"""From a finished run in the store to `results/<version>`: checkpoints for every tool, and the model card."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdlora import choices, records
from sdlora.config.params import Base, Export
from sdlora.config.train import Train
from sdlora.lora.card import card
from sdlora.lora.diffusers_file import read_lora
from sdlora.lora.metadata import About
from sdlora.lora.names import FILE_NAME, stem_of
from sdlora.lora.tool_files import write_for_tools
from sdlora.lora.whole import wants_whole
from sdlora.models import load_model
from sdlora.stages.flip import kohya_set
from sdlora.stages.train.dataset import Example
from sdlora.stages.train.loop import Run

ABOUT = "about.json"
EXAMPLES = 3  # captions in the card's widget
MOST_TAGS = 2000  # of a folder, the commonest: captions without commas are one tag each
LOSS_STEPS = 50  # the card's losses are means over so many steps


def write_about(kept: Path, run: Run, trigger: str) -> Path:
    """Keep what the run's files tell and no recipe says."""
    naming, scale = run.model.naming(), run.model.pipeline.vae_scale_factor
    width, height = _size_px(run.examples[0], scale)
    about = About(
        trigger=trigger,
        pictures=len(run.examples),
        captions=tuple(dict.fromkeys(example.text[0] for example in run.examples))[:EXAMPLES],
        size_px=(width, height),
        prediction_type=run.objective.name,
        cross_attention_dim=naming.get("cross_attention_dim", 0),
        layers_per_block=naming.get("layers_per_block", 0),
        **_dataset(run.examples, trigger, scale),
    )
    records.write_json(kept / ABOUT, vars(about))
    return kept / ABOUT


def _size_px(example: Example, scale: int) -> tuple[int, int]:
    """Width and height of a fitted picture; `scale` pixels are one place of its latents."""
    if not example.mean:
        width, height = example.bucket
        return width // scale * scale, height // scale * scale
    height, width = example.mean[0].shape[-2:]
    return width * scale, height * scale


def _dataset(examples: Sequence[Example], trigger: str, scale: int) -> dict[str, Any]:
    """Tags, folders and sizes of the pictures, as kohya's trainer counts them: tags in lower case, once a caption."""
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    counts, buckets = Counter[int](), Counter[tuple[int, int]]()
    for example in examples:
        counts[example.repeats] += 1
        buckets[_size_px(example, scale)] += example.repeats
        own = (tag.strip().lower() for tag in example.text[0].split(","))
        tags[kohya_set.folder_name(example.repeats, trigger)].update(tag for tag in own if tag)
    folders = {
        kohya_set.folder_name(repeats, trigger): {"n_repeats": repeats, "img_count": count}
        for repeats, count in sorted(counts.items())
    }
    sizes = [(*size, count) for size, count in sorted(buckets.items())]
    return {
        "tags": {name: dict(tags[name].most_common(MOST_TAGS)) for name in folders},
        "folders": folders,
        "buckets": sizes,
    }


def publish(kept: Path, out: Path, recipe: dict[str, Any]) -> list[Path]:
    """Copy a finished run to `out`, with the files for other tools and the card, under the version's name.

    Runs are kept by what they do, not by their version's name, so the name is written only here.

    Returns:
        The files published.
    """
    settings = Train.model_validate_json(records.canonical_json(recipe["train"]))
    base = Base.model_validate_json(records.canonical_json(recipe["base"]))
    about = About(**records.read_json(kept / ABOUT))
    export = Export.model_validate_json(records.canonical_json(recipe.get("export") or {}))
    names = [name for name in records.read_json(kept / "done.json") if name != ABOUT]
    records.publish_folder(kept / "checkpoints", out / "checkpoints")
    for name in names:
        if not name.startswith("checkpoints/"):
            # the export's settings change no LoRA, so they are no part of what is kept
            own = f"export: {export.model_dump_json()}\n" if name == "config.yaml" else ""
            records.write_bytes(out / name, (kept / name).read_bytes() + own.encode())
    for_tools: list[Path] = []
    wanted = settings.lora_type == "dora" and export.dora_whole != "none"
    named = choices.pick(choices.FAMILIES, base.family).kohya is not None
    denoiser = load_model(base, "cpu").denoiser if wanted and named else None
    loras = sorted((out / "checkpoints").rglob(FILE_NAME))
    for lora in loras:
        folder, *kind = lora.parent.relative_to(out / "checkpoints").parts
        name, step = stem_of(out.name, folder, tuple(kind)), int(folder.removeprefix("step-"))
        whole = denoiser if wants_whole(export.dora_whole, settings.checkpoint_steps, step) else None
        for_tools += write_for_tools(lora, name, step, settings, base, about, export, whole)
    identity = str(recipe["base_identity"])
    hub_id = identity.removeprefix("hub:").split("@")[0] if identity.startswith("hub:") else None
    text = card(out.name, settings, base, hub_id, about, _facts(kept, loras[-1]), export)
    records.write_text(out / "README.md", text)
    return [*(out / name for name in names), *for_tools, out / "README.md"]


def _facts(kept: Path, lora: Path) -> dict[str, str]:
    losses = [float(row["loss"]) for row in records.read_csv(kept / "train_log.csv")]
    first, last = losses[:LOSS_STEPS], losses[-LOSS_STEPS:]
    return {
        "trained numbers": f"{sum(value.numel() for value in read_lora(lora)[0].values()):,}",
        f"loss, mean of the first and the last {len(first)} steps": (
            f"{sum(first) / len(first):.4f}, {sum(last) / len(last):.4f}"
        ),
    }
