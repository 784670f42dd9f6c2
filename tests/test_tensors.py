"""Files of tensors that know when they are damaged: what is in them, and that reading maps them."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from sdlora import tensors
from sdlora.errors import DataError

VALUES = {"b.std": torch.rand(3, 5), "a.mean": torch.rand(4, 8, 8), 'é "': torch.ones(2), "one": torch.tensor(2.5)}


def test_a_file_is_what_safetensors_writes(tmp_path: Path) -> None:
    """Files of the time before these pieces were written stay whole."""
    path = tmp_path / "x.safetensors"
    tensors.write(path, VALUES)
    digest = hashlib.sha256(save(VALUES)).hexdigest()
    assert path.read_bytes() == save(VALUES, metadata={"sha256": digest})
    mixed = {"f": torch.ones(3), "i": torch.ones(2, dtype=torch.int32), "h": torch.ones(5, dtype=torch.float16)}
    path.write_bytes(save(mixed, metadata={"sha256": hashlib.sha256(save(mixed)).hexdigest()}))
    assert tensors.is_whole(path) and tensors.read(path).keys() == mixed.keys()


@pytest.mark.skipif(sys.platform != "linux", reason="maps are read from /proc")
def test_what_is_read_is_what_was_written_and_a_map_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    values = {**VALUES, "large": torch.rand(64, 1024), "none": torch.ones(0, 4)}
    tensors.write(path, values)
    found = tensors.read(path)
    assert found.keys() == values.keys() and all(torch.equal(found[name], values[name]) for name in values)
    assert sorted(tensors.names(path)) == sorted(values)
    start, end = map_of(path)
    assert all(start <= one.data_ptr() < end for one in found.values() if one.numel()), "no copy of the file"
    before = path.read_bytes()
    found["large"].zero_()
    assert path.read_bytes() == before and load(before)["large"].any(), "the map is private"


def map_of(path: Path) -> tuple[int, int]:
    """First and last address of this process's map of a file."""
    (line,) = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    start, end = line.split()[0].split("-")
    return int(start, 16), int(end, 16)


@pytest.mark.parametrize("place", [0, 12, 40, -1])
def test_damage_anywhere_is_found_and_names_the_file(tmp_path: Path, place: int) -> None:
    path = tmp_path / "x.safetensors"
    tensors.write(path, VALUES)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.safetensors: damaged"):
        tensors.read(path)
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"x\.safetensors: damaged"):
        tensors.names(path)


def test_a_tensor_that_cannot_be_saved_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"x: a torch\.sparse_coo tensor"):
        tensors.write(tmp_path / "x.safetensors", {"x": torch.eye(2).to_sparse()})
    assert not list(tmp_path.iterdir())
