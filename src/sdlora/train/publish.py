"""From a finished run in the store to `results/<version>`: checkpoints for every tool, and the model card."""

from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.params import Base
from sdlora.train.card import card
from sdlora.train.export import read_lora, write_kohya
from sdlora.train.files import FILE_NAME
from sdlora.train.header import About
from sdlora.train.loop import Run
from sdlora.train_section import Train

ABOUT = "about.json"
EXAMPLES = 3  # captions in the card's widget
LOSS_STEPS = 50  # the card's losses are means over so many steps


def write_about(kept: Path, run: Run, trigger: str) -> Path:
    """Keep what the run's files tell and no recipe says."""
    unet, scale = run.adapter.pipeline.unet.config, run.adapter.pipeline.vae_scale_factor
    first = run.examples[0]
    height, width = first.mean[0].shape[-2:] if first.mean else (side // scale for side in first.bucket[::-1])
    about = About(
        trigger=trigger,
        pictures=len(run.examples),
        captions=tuple(dict.fromkeys(example.text[0] for example in run.examples))[:EXAMPLES],
        size_px=(width * scale, height * scale),
        prediction_type=run.noising.config.prediction_type,
        cross_attention_dim=unet.cross_attention_dim,
        layers_per_block=unet.layers_per_block,
    )
    records.write_json(kept / ABOUT, vars(about))
    return kept / ABOUT


def publish(kept: Path, out: Path, recipe: dict[str, Any]) -> list[Path]:
    """Copy a finished run to `out`, with kohya's file in each checkpoint and the card, both under the version's name.

    Runs are kept by what they do, not by their version's name, so the name is written only here.

    Returns:
        The files published.
    """
    settings = Train.model_validate_json(records.canonical_json(recipe["train"]))
    base = Base.model_validate_json(records.canonical_json(recipe["base"]))
    about = About(**records.read_json(kept / ABOUT))
    names = [name for name in records.read_json(kept / "done.json") if name != ABOUT]
    records.publish_folder(kept / "checkpoints", out / "checkpoints")
    for name in names:
        if not name.startswith("checkpoints/"):
            records.write_bytes(out / name, (kept / name).read_bytes())
    kohya = []
    loras = sorted((out / "checkpoints").rglob(FILE_NAME))
    for lora in loras:
        folder, *kind = lora.parent.relative_to(out / "checkpoints").parts
        name = "-".join([out.name, folder.replace("-", ""), *kind])
        step = int(folder.removeprefix("step-"))
        kohya.append(write_kohya(lora, name, step, settings, base, about))
    identity = str(recipe["base_identity"])
    hub_id = identity.removeprefix("hub:").split("@")[0] if identity.startswith("hub:") else None
    text = card(out.name, settings, base, hub_id, about, _facts(kept, loras[-1]))
    records.write_text(out / "README.md", text)
    return [*(out / name for name in names), *(path for path in kohya if path), out / "README.md"]


def _facts(kept: Path, lora: Path) -> dict[str, str]:
    losses = [float(row["loss"]) for row in records.read_csv(kept / "train_log.csv")]
    first, last = losses[:LOSS_STEPS], losses[-LOSS_STEPS:]
    return {
        "trained numbers": f"{sum(value.numel() for value in read_lora(lora)[0].values()):,}",
        f"loss, mean of the first and the last {len(first)} steps": (
            f"{sum(first) / len(first):.4f}, {sum(last) / len(last):.4f}"
        ),
    }
