"""Latents of many pictures in one file: which file a picture's are in, and where in the store they are already."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from sdlora import tensors
from sdlora.errors import DataError
from sdlora.flow import hashing

LIMIT = 128  # pictures in a shard, at most: what is in memory at once, and what one more picture writes anew
KEY_BITS = 128
SETTLED_S = 60 * 60  # after which a shard in the store is nobody's work of this moment

#: Mean and deviation (C, h, w) of a picture's latents.
Latents = tuple[Tensor, Tensor]


def shards_of(keys: Iterable[str], limit: int) -> dict[str, list[str]]:
    """Put pictures' keys into shards: a function of the set of keys alone.

    Where there are more than `limit`, keys are halved by their first bit, each half by the next bit, and so on. So one
    picture more or less changes one shard, or halves or joins one, and leaves the others as they are.

    Args:
        keys: 32 hexadecimal digits each.
        limit: Keys of a shard, at most.

    Returns:
        Each shard's sorted keys, by its file's name: a hash of them, so that equal sets of pictures share shards.
    """
    return {f"{hashing.sha256_text(' '.join(group))[:32]}.safetensors": group for group in _groups(keys, limit)}


def _groups(keys: Iterable[str], limit: int, bit: int = 1) -> Iterator[list[str]]:
    group = sorted(set(keys))
    if len(group) > limit:
        upper = [bool(int(key, 16) >> (KEY_BITS - bit) & 1) for key in group]
        for half in (False, True):
            yield from _groups((key for key, side in zip(group, upper, strict=True) if side is half), limit, bit + 1)
    elif group:
        yield group


def write(path: Path, latents: Mapping[str, Latents]) -> None:
    """Write a shard: latents by key, with a checksum of each picture's own."""
    named: dict[str, Tensor] = {}
    for key, (mean, std) in latents.items():
        named |= {f"{key}.mean": mean, f"{key}.std": std}
    tensors.write(path, named, {key: _digest(*pair) for key, pair in latents.items()})


def _digest(mean: Tensor, std: Tensor) -> str:
    return tensors.digest_of({"mean": mean, "std": std})


def read(path: Path) -> dict[str, Latents]:
    """Latents by key, as views of a map of the file.

    Raises:
        DataError: If it is damaged.
    """
    return _by_key(path, tensors.read(path))


def undamaged(path: Path) -> dict[str, Latents]:
    """What `read` gives, and of a damaged shard the latents that fit their checksums.

    Raises:
        DataError: If nothing of it can be read.
    """
    try:
        return read(path)
    except DataError:
        named, digests = tensors.read_unchecked(path)
    return {key: pair for key, pair in _by_key(path, named).items() if _digest(*pair) == digests.get(key)}


def _by_key(path: Path, named: Mapping[str, Tensor]) -> dict[str, Latents]:
    try:
        return {key: (named[f"{key}.mean"], named[f"{key}.std"]) for key in _keys(named)}
    except KeyError as error:
        raise DataError(f"{path}: damaged: it has no {error.args[0]}") from None


def _keys(names: Iterable[str]) -> set[str]:
    """Whose latents a file has; a file that is no shard has none."""
    return {name.partition(".")[0] for name in names if "." in name}


def gathered(folder: Path, wanted: Collection[str]) -> dict[str, Latents]:
    """Latents that a folder's shards have, whichever set they were written for, as far as they are undamaged."""
    found: dict[str, Latents] = {}
    missing = set(wanted)
    for path in sorted(folder.glob("*.safetensors")) if missing else ():
        with suppress(DataError):
            if missing.intersection(_keys(tensors.names(path))):
                shard = undamaged(path)
                found |= {key: shard[key] for key in missing.intersection(shard)}
                missing.difference_update(shard)
    return found


def drop_superseded(folder: Path, shards: Mapping[str, Collection[str]]) -> None:
    """Delete shards that lie nowhere else and hold nothing that the given ones do not; what is new is left alone.

    Without this, each picture added would leave a shard that `store.drop_unused` keeps for a month.
    """
    held = {key for keys in shards.values() for key in keys}
    latest = time.time() - SETTLED_S
    for path in folder.glob("*.safetensors"):
        with suppress(FileNotFoundError, DataError):  # another job may have been faster
            state = path.stat()
            if path.name not in shards and state.st_nlink == 1 and state.st_mtime < latest:
                keys = _keys(tensors.names(path))
                if keys and keys <= held:
                    path.unlink()
