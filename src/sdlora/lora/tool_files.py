"""The files of a checkpoint for A1111, ComfyUI and kohya's tools."""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from sdlora import records
from sdlora.config.params import Base, Export
from sdlora.config.train import Train
from sdlora.errors import DataError
from sdlora.lora.diffusers_file import METADATA, read_lora, write_file
from sdlora.lora.kohya_file import form_of, to_kohya, to_whole
from sdlora.lora.metadata import About, base_version, header, trigger_of
from sdlora.lora.names import EMBEDDINGS, FOR_A1111, FOR_DIFFUSERS, FOR_EMBEDDINGS, FOR_LYCORIS, word_of
from sdlora.lora.whole import whole_updates
from sdlora.models.names import NoKohyaForm
from sdlora.tensors import DTYPES


@dataclass(frozen=True)
class Trained:
    """A LoRA in diffusers' file, and what the headers of its other files say of it."""

    lora: Path
    name: str  # the LoRA's, in the tools that read the files
    step: int  # optimizer steps behind it
    settings: Train
    base: Base
    about: About  # what the run found out


def write_kohya(
    trained: Trained, ending: str = "", dtype: str = "fp32", denoiser: nn.Module | None = None, out: Path | None = None
) -> Path | None:
    """Write `<name><ending>.safetensors` with kohya's names.

    Args:
        trained: The LoRA.
        ending: For whom it is, in the file's name.
        dtype: Type of the tensors but `.alpha`.
        denoiser: The base's, where DoRA's whole updates are wanted in place of its factors.
        out: Where to; None = beside diffusers' file.

    Returns:
        The file, or None (and a line that says why) if the LoRA has no form there.
    """
    family, layers = trained.base.family, trained.about.layers_per_block
    try:
        read = read_lora(trained.lora)
        found = to_kohya(*read, family, layers)
        if denoiser is not None:
            form = form_of(family)
            kept = {key: value for key, value in found.items() if not key.startswith(form.prefixes[form.denoiser])}
            updates = whole_updates(*read, denoiser, form.denoiser)
            found = {**kept, **to_whole(updates, family, layers)}
    except NoKohyaForm as reason:
        print(f"export: only diffusers' file is written: {reason}", flush=True)
        return None
    path = (out or trained.lora.parent) / f"{trained.name}{ending}{_of_type(dtype)}.safetensors"
    typed = {key: value if key.endswith(".alpha") else _typed(key, value, dtype) for key, value in found.items()}
    return write_file(
        path, typed, header(trained.name, trained.step, trained.settings, trained.base, trained.about, typed)
    )


def write_for_tools(
    trained: Trained, export: Export, denoiser: nn.Module | None = None, out: Path | None = None
) -> list[Path]:
    """Write what other tools read beside diffusers' file.

    Args:
        trained: The LoRA.
        export: The type of the files.
        denoiser: The base's, where a DoRA gets a file of whole updates.
        out: Where to; None = beside diffusers' file.

    Returns:
        The files.
    """
    lora, about, place = trained.lora, trained.about, out or trained.lora.parent
    wanted: list[tuple[str, nn.Module | None]] = [(FOR_A1111, None)]
    if trained.settings.lora_type == "dora":
        wanted = [(FOR_LYCORIS, None), *([(FOR_A1111, denoiser)] if denoiser is not None else [])]
    written = [write_kohya(trained, ending, export.dtype, frozen, place) for ending, frozen in wanted]
    files = [path for path in written if path is not None]
    whole = written[-1] if wanted[-1][1] is not None else None
    if whole is not None:
        size = f"{whole.stat().st_size / 2**20:.0f} MiB"
        print(f"export: {whole.name}: whole updates for A1111 and ComfyUI, {size} (export.dora_whole)", flush=True)
    cards = [_write_a1111_card(path, trained.settings, trained.base, about) for path in files if FOR_A1111 in path.name]
    if export.dtype != "fp32":
        files.append(_write_typed_copy(lora, trained.name, export.dtype, place))
    if lora.with_name(EMBEDDINGS).exists():
        copy = place / FOR_EMBEDDINGS / f"{word_of(about.trigger)}.safetensors"
        records.write_bytes(copy, lora.with_name(EMBEDDINGS).read_bytes())
        files.append(copy)
    return [*files, *cards]


def _of_type(dtype: str) -> str:
    return "" if dtype == "fp32" else f"-{dtype}"


def _typed(name: str, value: Tensor, dtype: str) -> Tensor:
    typed = value.to(DTYPES[dtype])
    if not typed.isfinite().all() and value.isfinite().all():
        raise DataError(
            f"export.dtype is {dtype}, which cannot hold {value.abs().max():g} of {name}; choices: fp32, bf16. The "
            f"training is kept: only its files are written again"
        )
    return typed


def _write_typed_copy(lora: Path, name: str, dtype: str, out: Path) -> Path:
    found, said = read_lora(lora)
    typed = {key: _typed(key, value, dtype) for key, value in found.items()}
    path = out / f"{name}{FOR_DIFFUSERS}{_of_type(dtype)}.safetensors"
    return write_file(path, typed, {METADATA: json.dumps(said, sort_keys=True)})


def _write_a1111_card(lora: Path, settings: Train, base: Base, about: About) -> Path:
    """A1111's own `<name>.json`: which models it fits, and the words that a click on its card adds to the prompt."""
    path = lora.with_suffix(".json")
    values = {
        "description": f"trained on {about.pictures} pictures",
        "sd version": base_version(base, about).a1111,
        "activation text": trigger_of(settings, about),
        "preferred weight": 0,  # the user's own
        "negative text": "",
        "notes": "",
    }
    records.write_json(path, values)
    return path
