"""Tensors in files that know when they are damaged.

safetensors and torch both load a flipped bit without a word, so each file carries a hash of its data.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from sdlora import records
from sdlora.errors import DataError

#: Types of weights, as `params.yaml` names them.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_KEY = "sha256"  # of the metadata
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
    yield _head(header)
    for name in ordered:
        yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _head(header: Mapping[str, object]) -> bytes:
    """What a safetensors file begins with, as safetensors itself writes it."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a safetensors file of them without metadata, in hex."""
    digest = hashlib.sha256()
    for piece in pieces(tensors):
        digest.update(piece)
    return digest.hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically, the same bytes for the same tensors; one tensor is copied at a time.

    Its metadata are a checksum, that of the same file without metadata, and `about`.
    """
    records.write_bytes(path, pieces(tensors, {**(about or {}), _KEY: digest_of(tensors)}))


def read(path: Path) -> dict[str, Tensor]:
    """Read a file of `write`: its tensors are views of a private map of it.

    The file is read through once, in pieces, for its checksum. What the tensors take are pages of the file, which the
    system takes back where it needs memory, and reads again.

    Raises:
        DataError: If it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get(_KEY)
        found = _digest_of(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged: {error}") from None
    if expected != found:
        raise DataError(f"{path}: damaged: its content does not fit its checksum")
    return tensors


def _digest_of(path: Path) -> str:
    """sha256 of a safetensors file as it would be without metadata."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        digest = hashlib.sha256(_head(header))
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def read_unchecked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata that a damaged file still has.

    No views of a map: a page that the disk cannot give would end the process.

    Raises:
        DataError: If it cannot be read at all.
    """
    try:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return load(content), header.get("__metadata__", {})
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: {error}") from None


def names(path: Path) -> list[str]:
    """The tensors of a file, by its header alone.

    Raises:
        DataError: If it has none that can be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged: {error}") from None


def is_whole(path: Path) -> bool:
    """Whether the file exists and is undamaged."""
    try:
        return path.exists() and bool(read(path))
    except DataError:
        return False
