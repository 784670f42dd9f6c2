"""Which files a measuring network is read from, and what is said before the first job where they are not there.

Weights are safetensors: a pickle can run code, so `pytorch_model.bin` is not read, nor downloaded.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdlora.config.evaluate import NETWORKS
from sdlora.errors import DataError, MissingError, download_command
from sdlora.stages.evaluate.recipe import Network

#: The `model_type` that a network's config.json must state, by the setting that names it.
KINDS = dict.fromkeys(NETWORKS, "clip") | {"dinov2_model": "dinov2"}
#: What of a repository on the hub is read.
FILES = ["*.json", "merges.txt", "model*.safetensors"]
#: What of it must be there; of a group one file does.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER = ("tokenizer.json", "vocab.json")
NEEDED = [("config.json",), ("preprocessor_config.json", "processor_config.json"), WEIGHTS]


def check(setting: str, network: Network) -> None:
    """Report, before any job, that a network is not there; nothing is downloaded.

    Args:
        setting: An entry of `NETWORKS`, which names the network.
        network: What it names.

    Raises:
        MissingError: If it is neither a folder nor in the hub's cache nor to be had from the hub; says what to do.
        DataError: If it is there, but is another network or lacks a file.
    """
    folder = Path(network.model)
    if not folder.exists():
        with suppress(MissingError):  # not in the hub's cache
            folder = Path(_from_hub(setting, network, local_files_only=True))
        if not folder.is_dir() or _lacking(setting, _names(folder)):
            listed = _from_hub(setting, network, dry_run=True)
            _check_names(setting, network, {one.filename for one in listed})
            return
    _check_folder(setting, network, folder)


def folder_of(setting: str, network: Network) -> Path:
    """The folder that a network is read from; from the hub it is downloaded once.

    Raises:
        MissingError: As `check` does.
        DataError: As `check` does.
    """
    local = Path(network.model)
    folder = local if local.exists() else Path(_from_hub(setting, network))
    _check_folder(setting, network, folder)
    return folder


def _needed(setting: str) -> list[tuple[str, ...]]:
    """Groups of files of which one must be there."""
    return [*NEEDED, TOKENIZER] if setting == "clip_model" else [*NEEDED]  # clip_t reads prompts


def _from_hub(setting: str, network: Network, **options: Any) -> Any:
    from huggingface_hub import snapshot_download

    wanted = ", ".join(group[0] for group in _needed(setting))
    try:
        return snapshot_download(network.model, revision=network.revision, allow_patterns=FILES, **options)
    except ValueError:  # no hub has such a name
        raise MissingError(
            f"evaluate.{setting}: there is no folder {network.model!r}; it is a hub id or a folder with {wanted}"
        ) from None
    except OSError as error:
        raise MissingError(
            f"evaluate.{setting}: {network.model!r} is neither a folder nor to be had from the hub at "
            f"{network.revision or 'main'}. On a machine with network: "
            f"`{download_command(network.model, network.revision)}`, or set evaluate.{setting} to a folder with "
            f"{wanted} ({str(error).splitlines()[0]})"
        ) from None


def _check_folder(setting: str, network: Network, folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"evaluate.{setting}: {network.model!r} is a file; a folder as transformers saves it is wanted")
    _check_names(setting, network, _names(folder))
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        found = config.get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise DataError(f"evaluate.{setting}: {folder / 'config.json'} cannot be read: {error}") from None
    if found != KINDS[setting]:
        raise DataError(
            f"evaluate.{setting}: {network.model!r} holds a network of model_type {found!r}, where {KINDS[setting]!r} "
            f"is wanted"
        )


def _check_names(setting: str, network: Network, names: set[str]) -> None:
    lacking = _lacking(setting, names)
    if lacking is not None:
        pickled = "; pytorch_model.bin is not read: docs/evaluation.md says how to convert it"
        raise DataError(f"evaluate.{setting}: {network.model!r} lacks {lacking}{pickled * (lacking == WEIGHTS[0])}")


def _lacking(setting: str, names: set[str]) -> str | None:
    """The first file that a network cannot do without and that is not among some names."""
    return next((group[0] for group in _needed(setting) if not names & {*group}), None)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
