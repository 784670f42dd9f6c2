"""A version without a training: a LoRA from elsewhere, or several LoRAs at once, becomes its one checkpoint."""

import shutil
from pathlib import Path

import torch

from sdlora import choices, records
from sdlora.errors import DataError
from sdlora.flow.hashing import sha256_of
from sdlora.lora.diffusers_file import read_lora, write_file
from sdlora.lora.foreign import Foreign, check_own_form, lora_file, mixed, own_form, read_foreign, write_layers
from sdlora.lora.kohya_file import to_kohya
from sdlora.lora.names import AVERAGE, EMBEDDINGS, FILE_NAME, FOR_A1111, FOR_DIFFUSERS, file_in, stem_of
from sdlora.models import ModelFamily
from sdlora.models.names import NoKohyaForm
from sdlora.stages.adopt.recipe import FACTS, Adopted, AdoptRecipe

FOLDER = "step-000001"  # how many steps are behind a stranger's file is not known


def adopt(recipe: AdoptRecipe) -> list[Path]:
    """Write `checkpoints/step-000001/`, its form for other tools, and the files that a training leaves.

    One plain LoRA, or several as one: their matrices side by side add up to what `set_adapters` adds. A single file
    of diffusers' form with another type (DoRA, LoHa, LoKr) is taken as it is.

    Returns:
        The files written.

    Raises:
        DataError: If a file is not there, is no LoRA of this base, or cannot be one of several.
    """
    torch.set_num_threads(1)  # as its rule says
    out = recipe.folder
    sources = [(_file(one, out.parent), one) for one in recipe.loras]
    target = out / "checkpoints" / FOLDER / FILE_NAME
    for folder in ("checkpoints", "export"):
        shutil.rmtree(out / folder, ignore_errors=True)
    family: type[ModelFamily] = choices.pick(choices.FAMILIES, recipe.base.family)
    model = family.outline(recipe.base, torch.device("cpu"))
    path, only = sources[0]
    if len(sources) == 1 and only.weight == 1 and own_form(path):
        check_own_form(path, model)
        records.write_bytes(target, path.read_bytes())
        forms = ["diffusers"]
    else:
        found = [(_plain(path, model), one.weight) for path, one in sources]
        write_layers(target, mixed(found), model)
        forms = [foreign.form for foreign, _ in found]
    as_it_came = path if forms == ["kohya"] and only.weight == 1 else None
    facts = [
        {"name": _told(one, path), "weight": one.weight, "form": form, "sha256": sha256_of(path)}
        for (path, one), form in zip(sources, forms, strict=True)
    ]
    return [target, _for_tools(recipe, target, as_it_came, model), *_around(recipe, facts)]


def _for_tools(recipe: AdoptRecipe, lora: Path, as_it_came: Path | None, model: ModelFamily) -> Path:
    """The file for A1111 and ComfyUI: what came, where it has their form; diffusers' where they have none for it."""
    stem = recipe.folder / "export" / FOLDER / stem_of(recipe.version, FOLDER)
    for_a1111 = stem.with_name(f"{stem.name}{FOR_A1111}.safetensors")
    if as_it_came is not None:
        records.write_bytes(for_a1111, as_it_came.read_bytes())
        return for_a1111
    tensors, said = read_lora(lora)
    try:
        if any(value for key, value in said.items() if key.endswith(".use_dora")):
            raise NoKohyaForm("A1111 and ComfyUI misread DoRA's magnitudes")
        found = to_kohya(tensors, said, recipe.base.family, model.naming().get("layers_per_block", 0))
    except NoKohyaForm as reason:
        print(f"adopt: only diffusers' file is written: {reason}", flush=True)
        copy = stem.with_name(f"{stem.name}{FOR_DIFFUSERS}.safetensors")
        records.write_bytes(copy, lora.read_bytes())
        return copy
    return write_file(for_a1111, found, {"modelspec.title": recipe.version, "ss_output_name": recipe.version})


def _file(one: Adopted, results: Path) -> Path:
    if one.file is not None:
        return lora_file(Path(one.file))
    result = results / str(one.version)
    step = one.step or records.read_json(result / "best.json")["best_step"]
    checkpoint = result / "checkpoints" / f"step-{step:06d}"
    if (checkpoint / EMBEDDINGS).exists():
        raise DataError(f"{one.version} was trained with pivotal tuning: its LoRA is nothing without its embedding")
    return file_in(checkpoint, one.average)


def _plain(path: Path, model: ModelFamily) -> Foreign:
    if own_form(path):
        raise DataError(f"{path}: a DoRA, LoHa or LoKr is taken alone and at weight 1: it is no pair of matrices")
    return read_foreign(path, model)


def _told(one: Adopted, path: Path) -> str:
    """Which LoRA it is, for a reader; no path of this machine beyond what `params.yaml` says."""
    return one.file or f"{one.version}, {path.parent.name if path.parent.name != AVERAGE else path.parents[1].name}"


def _around(recipe: AdoptRecipe, facts: list[records.Row]) -> list[Path]:
    """What stands in the place of a training's log, settings and card."""
    out, asked = recipe.folder, {"lora": [one.model_dump(exclude={"file_identity"}) for one in recipe.loras]}
    records.write_json(out / "checkpoints" / FACTS, facts)
    records.write_csv(out / "train_log.csv", ("step", "loss", "learning_rate"), [])
    records.write_text(out / "config.yaml", records.canonical_json(asked))  # JSON is YAML
    rows = "".join(f"- {row['name']!r}, weight {row['weight']:g}, sha256 {row['sha256']}\n" for row in facts)
    text = f"# {recipe.version}\n\nNot trained here. It is drawn and measured as it was found:\n\n{rows}"
    records.write_text(out / "README.md", text)
    return [out / "checkpoints" / FACTS, *(out / name for name in ("train_log.csv", "config.yaml", "README.md"))]
