"""Weights are read as safetensors and as nothing else: a file in another format can run code when it is opened."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sdlora import records
from sdlora.errors import DataError, MissingError, SdloraError, download_command

MOST_HEADER = 100_000_000  # bytes: safetensors' own limit
#: What a token is told by, in a single file of Stable Diffusion 1 or 2.
KEY_OF_SD = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
OTHERS = (".bin", ".ckpt", ".pt", ".pth")
#: Names of models on the hub: an owner, and a name.
HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
#: Parts of a pipeline's folder that are never loaded.
NOT_LOADED = ("safety_checker", "feature_extractor")
WHY = "only .safetensors is read: other files can run code when they are opened"
#: The keys of `params.yaml` that name a model.
BASE, VAE, CAPTIONER, FILM = "bases.<name>.model", "bases.<name>.vae", "bases.<name>.captioner", "animate.model"
#: What a folder must have to be one of them.
INDICES = {
    BASE: ("model_index.json", "a base as diffusers saves it"),
    VAE: ("config.json", "a VAE as diffusers saves it"),
    CAPTIONER: ("config.json", "a BLIP as transformers saves it"),
    FILM: ("model_index.json", "a pipeline as diffusers saves it"),
}
#: What libraries raise where a model is not there, or is damaged.
UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError)
#: How diffusers and transformers say that a model's weights are no safetensors.
_SAID = ("find the necessary `safetensors`", "no file named", "does not appear to have a file named")


def refuse_others(model: str) -> None:
    """Refuse a model on this machine whose weights are no safetensors, or are not what they would be taken for.

    Of the hub, nothing is known here.

    Args:
        model: A hub id, a folder of a pipeline or of one network, or a file.

    Raises:
        DataError: Names the file, and how it is converted.
    """
    path = Path(model)
    if path.is_file() and path.suffix in OTHERS:
        call = f"from_single_file({model!r}).save_pretrained({str(path.with_suffix(''))!r})"
        raise DataError(
            f'{path}: {WHY}; `python -c "import diffusers; diffusers.StableDiffusionPipeline.{call}"` '
            f"(StableDiffusionXLPipeline for SDXL) writes a folder of such, which can be the base's model"
        )
    header = _header(path) if path.is_file() else {}
    place = "its scheduler/scheduler_config.json, and name the folder"
    folder = f"Write it as a folder, `from_single_file({model!r}).save_pretrained(...)`, set prediction_type"
    if _is_of_sd_2(header):
        raise DataError(
            f"{path}: checkpoints of Stable Diffusion 2 predict velocity (768 px) or noise (512 px, `base`), and a "
            f"single file brings no scheduler that says which: diffusers would take velocity for each. {folder} to "
            f"v_prediction or epsilon in {place}"
        )
    if _predicts_velocity(header):
        zero = " (and rescale_betas_zero_snr to true: it is marked `ztsnr`)" if "ztsnr" in header else ""
        raise DataError(
            f"{path}: this checkpoint predicts velocity, and a single file brings no scheduler that says so: diffusers "
            f"would take the family's, which says epsilon. {folder} to v_prediction{zero} in {place}"
        )
    for file in _without_safetensors(path):
        raise DataError(f"{file}: {WHY}; `{conversion(path)}` writes such beside it")


def refuse_incomplete(option: str, model: str) -> None:
    """Refuse what is no model at all: a folder without its index, and a file or folder that is not there.

    Args:
        option: The key of `params.yaml` that names it.
        model: A hub id, a folder or a file.

    Raises:
        DataError: Names the file that a folder lacks.
        MissingError: If it is not here, and cannot be a model of the hub.
    """
    path, (index, what) = Path(model), INDICES[option]
    if not path.exists() and (path.suffix in (".safetensors", *OTHERS) or not HUB_ID.fullmatch(model)):
        raise MissingError(f"{option}: there is no file or folder {model!r}, and no model of the hub has such a name")
    if path.is_dir() and not (path / index).is_file():
        raise DataError(
            f"{option}: the folder {model!r} has no {index}, so it is not {what}; name another, or a hub id"
        )


def _header(path: Path) -> dict[str, Any]:
    """What a file of weights says of its tensors; nothing where that cannot be read."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), MOST_HEADER)))
    except (OSError, ValueError):
        return {}  # who loads it will say what is wrong with it
    return found if isinstance(found, dict) else {}


def _predicts_velocity(header: dict[str, Any]) -> bool:
    """Whether a checkpoint's header marks it so, as trainers do: a key `v_pred`, or modelspec's prediction type."""
    about = header.get("__metadata__")
    said = about.get("modelspec.prediction_type") if isinstance(about, dict) else None
    return "v_pred" in header or said == "v"


def _is_of_sd_2(header: dict[str, Any]) -> bool:
    """Whether a checkpoint's UNet is told 1024 numbers a token, by which diffusers knows Stable Diffusion 2."""
    about = header.get(KEY_OF_SD)
    shape = about.get("shape") if isinstance(about, dict) else None
    return isinstance(shape, list) and shape[-1:] == [1024]


def _without_safetensors(path: Path) -> Iterator[Path]:
    """A file of weights of each folder that has none in safetensors."""
    for folder in _folders(path):
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        others = [file for file in files if file.suffix in OTHERS]
        if others and not any(file.suffix == ".safetensors" for file in files):
            yield others[0]


def _folders(path: Path) -> list[Path]:
    """Where the weights of a pipeline, or of one network, lie."""
    parts = records.read_config(path / "model_index.json") or {}
    return [path / name for name in parts if name not in NOT_LOADED and not name.startswith("_")] or [path]


def conversion(folder: Path) -> str:
    """The command that writes a folder's weights as safetensors, with the libraries' own means."""
    said = records.read_config(folder / "config.json") or {}
    if "_class_name" in said:
        kind = f"diffusers.{said['_class_name']}"
    elif said.get("architectures"):
        kind = f"transformers.{said['architectures'][0]}"
    else:
        kind = "diffusers.DiffusionPipeline"
    place = repr(str(folder))
    return f'python -c "import {kind.partition(".")[0]}; {kind}.from_pretrained({place}).save_pretrained({place})"'


def refusal(model: str, revision: str | None, error: Exception) -> DataError | None:
    """What is said where diffusers or transformers find no safetensors of a model; None where that is not the error.

    Args:
        model: A hub id, or a folder.
        revision: Of the hub.
        error: Theirs.
    """
    said = str(error)
    if "safetensors" not in said or not any(words in said for words in _SAID):
        return None
    if Path(model).exists():
        return DataError(f"{model}: {WHY} ({said.splitlines()[0]})")
    folder = f"models/{model.rpartition('/')[2]}"
    return DataError(
        f"{model} has no weights in that format, and {WHY}; say `{download_command(model, revision)} --local-dir "
        f"{folder}` and name {folder} in params.yaml: for a folder it is said how they are converted"
    )


def unreadable(option: str, model: str, revision: str | None, error: Exception) -> SdloraError:
    """What is said where a library cannot read a model.

    Args:
        option: The key of `params.yaml` that names it.
        model: A hub id, a folder or a file.
        revision: Of the hub.
        error: The library's.
    """
    said = next(iter(str(error).splitlines()), type(error).__name__)
    if Path(model).exists() or not isinstance(error, OSError | ValueError):
        return DataError(f"{option}: {model!r} cannot be read: {said}")
    other = " or a .safetensors file" if option == BASE else ""
    return MissingError(
        f"{option}: {model!r} is neither on this machine nor to be had from the hub at {revision or 'main'}. Where "
        f"there is a network: `{download_command(model, revision)}`, or set {option} to a folder{other} ({said})"
    )
