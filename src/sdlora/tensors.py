"""Tensors in files that know when they are damaged.

safetensors and torch both load a flipped bit without a word, so each file carries a hash of its data.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdlora import records
from sdlora.errors import DataError

#: Types of weights, as `params.yaml` names them.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_KEY = "sha256"  # the only metadata key: with two, their order in the file would vary
_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes]:
    """A safetensors file, piece by piece: equal tensors and metadata give equal bytes.

    safetensors' own writer orders metadata at random once there are two keys. Here all keys are sorted, and tensors lie
    by (element size, name), so that each is aligned.

    Raises:
        TypeError: If a tensor's type has no name in the format.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    place = 0
    for name in ordered:
        value = tensors[name]
        if value.dtype not in _CODES or value.layout != torch.strided:
            raise TypeError(f"{name}: a {value.layout} tensor of {value.dtype} cannot be saved")
        end = place + value.numel() * value.element_size()
        header[name] = {"dtype": _CODES[value.dtype], "shape": list(value.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in ordered:
        yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


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
