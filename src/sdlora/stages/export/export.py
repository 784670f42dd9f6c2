"""A trained version's files for other tools, and its model card."""

import shutil
from pathlib import Path

import torch

from sdlora import choices, records
from sdlora.lora.card import card
from sdlora.lora.diffusers_file import read_lora
from sdlora.lora.metadata import About
from sdlora.lora.names import ABOUT, FILE_NAME, stem_of
from sdlora.lora.tool_files import Trained, write_for_tools
from sdlora.lora.whole import wants_whole
from sdlora.models import load_model
from sdlora.stages.export.recipe import ExportRecipe

FOLDER = "export"
LOSS_STEPS = 50  # the card's losses are means over so many steps


def export_version(recipe: ExportRecipe) -> list[Path]:
    """Write `export/step-000100/`, with the files for other tools of every checkpoint, and `README.md`, the card.

    Trainings are kept by what they do, not by their version's name, so the name is written only here.

    Returns:
        The files written.
    """
    torch.set_num_threads(1)  # as its rule says
    out, settings, base, export = recipe.folder, recipe.train, recipe.base, recipe.export
    checkpoints = out / "checkpoints"
    about = About(**records.read_json(checkpoints / ABOUT))
    has_names = choices.pick(choices.FAMILIES, base.family).kohya is not None
    needs_base = settings.lora_type == "dora" and export.dora_whole != "none" and has_names
    denoiser = load_model(base, "cpu", ("denoiser",)).denoiser if needs_base else None
    files: list[Path] = []
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    loras = sorted(checkpoints.rglob(FILE_NAME))
    for lora in loras:
        place = lora.parent.relative_to(checkpoints)
        folder, *kind = place.parts
        name, step = stem_of(recipe.version, folder, tuple(kind)), int(folder.removeprefix("step-"))
        whole = denoiser if wants_whole(export.dora_whole, settings.checkpoint_steps, step) else None
        trained = Trained(lora, name, step, settings, base, about)
        files += write_for_tools(trained, export, whole, out / FOLDER / place)
    (out / FOLDER).mkdir(exist_ok=True)  # also where no other tool has a form for this LoRA
    hub_id = (
        recipe.base_identity.removeprefix("hub:").split("@")[0] if recipe.base_identity.startswith("hub:") else None
    )
    facts = _facts(out / "train_log.csv", loras[-1])
    records.write_text(out / "README.md", card(recipe.version, settings, base, hub_id, about, facts, export))
    return [*files, out / "README.md"]


def _facts(log: Path, lora: Path) -> dict[str, str]:
    losses = [float(row["loss"]) for row in records.read_csv(log)]
    first, last = losses[:LOSS_STEPS], losses[-LOSS_STEPS:]
    return {
        "trained numbers": f"{sum(value.numel() for value in read_lora(lora)[0].values()):,}",
        f"loss, mean of the first and the last {len(first)} steps": (
            f"{sum(first) / len(first):.4f}, {sum(last) / len(last):.4f}"
        ),
    }
