"""Tensors in files that know when they are damaged.

safetensors and torch both load a flipped bit without a word, so each file carries a hash of its data.
"""

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdlora import records
from sdlora.errors import DataError

_KEY = "sha256"  # the only metadata key: with two, their order in the file would vary


def _digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(save({name: tensors[name] for name in sorted(tensors)})).hexdigest()


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically, the same bytes for the same tensors."""
    whole = {name: tensors[name].contiguous() for name in sorted(tensors)}
    records.write_bytes(path, save(whole, metadata={_KEY: _digest(whole)}))


def read(path: Path) -> dict[str, Tensor]:
    """Read a file of `write`.

    Raises:
        DataError: If it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged: {error}") from None
    if expected != _digest(tensors):
        raise DataError(f"{path}: damaged: its content does not fit its checksum")
    return tensors


def is_whole(path: Path) -> bool:
    """Whether the file exists and is undamaged."""
    try:
        return path.exists() and bool(read(path))
    except DataError:
        return False
