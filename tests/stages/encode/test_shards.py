"""Latents in shards: where a picture's are, what one more picture writes, and that nothing is encoded twice."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from small_set import ENCODE, noise

from sdlora import records, tensors
from sdlora.config.params import Encode
from sdlora.errors import DataError, ResourceError
from sdlora.flow import hashing, store
from sdlora.stages.encode import encode, shards
from sdlora.stages.encode.encode import encode_dataset
from sdlora.stages.train.dataset import load_examples

STORED = store.STORE / encode.KIND
Told = Callable[[], str]


@pytest.fixture(autouse=True)
def _small_shards_in_an_own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the store lies in the working directory
    monkeypatch.setattr(shards, "LIMIT", 4)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """The last line that was printed."""
    return lambda: capsys.readouterr().out.strip().splitlines()[-1]


def keys_of(count: int, first: int = 0) -> list[str]:
    return [hashing.sha256_text(str(number))[:32] for number in range(first, first + count)]


def write_set(folder: Path, numbers: Iterable[int]) -> Path:
    """A fitted set of 64 px noise, one seed a picture, as the stage flip leaves it."""
    rows = []
    for number in numbers:
        name = f"{number:03d}.png"
        if not (folder / "train" / name).exists():
            (folder / "train").mkdir(parents=True, exist_ok=True)
            noise(64, 64, number).save(folder / "train" / name)
        place = {"bucket": [64, 64], "box": [0, 0, 64, 64], "original": [64, 64], "corner": [0, 0], "repeats": 1}
        rows.append({"id": f"{number:016x}", "mirrored": False, "file_name": name, "text": "captain", **place})
    records.write_jsonl(folder / "train/metadata.jsonl", rows)
    return folder


def encoded(folder: Path, numbers: Iterable[int]) -> dict[str, int]:
    """Encode a set; the inode of each of its shards."""
    files = encode_dataset(ENCODE, write_set(folder, numbers))
    assert sorted(files) == sorted((folder / "latents/tiny").iterdir()), "every file is told, none is left over"
    return {path.name: path.stat().st_ino for path in files if path.suffix == ".safetensors"}


def values_of(folder: Path) -> dict[str, torch.Tensor]:
    return {one.id: torch.stack([one.mean[0], one.std[0]]) for one in load_examples(folder, "tiny")}


@pytest.mark.parametrize("limit", [1, 8, 128])
def test_one_more_picture_changes_one_shard_or_halves_one(limit: int) -> None:
    keys = keys_of(301)
    for count in range(280, 301):
        before, after = (shards.shards_of(keys[:many], limit) for many in (count, count + 1))
        assert sorted(key for group in after.values() for key in group) == sorted(keys[: count + 1])
        assert all(0 < len(group) <= limit for group in after.values())
        gone, new = set(before) - set(after), set(after) - set(before)
        assert len(gone) <= 1 and len(new) >= 1
        assert len(new) == 1 or sum(len(after[name]) for name in new) == limit + 1, "only a full one is halved"


def test_shards_are_a_function_of_the_set_of_keys() -> None:
    keys = keys_of(50)
    assert shards.shards_of(keys, 8) == shards.shards_of([*reversed(keys), keys[3]], 8)
    sizes = [len(group) for group in shards.shards_of(keys_of(5000), 128).values()]
    assert max(sizes) <= 128 and len(sizes) < 100, "they are more than a third full"


def test_one_more_picture_is_encoded_and_writes_one_shard(tmp_path: Path, told: Told) -> None:
    folder = tmp_path / "a"
    before = encoded(folder, range(20))
    assert told() == "encode: 20 new, 0 already in the cache" and len(before) > 4
    values = values_of(folder)
    after = encoded(folder, range(21))
    assert told() == "encode: 1 new, 20 already in the cache"
    new = after.keys() - before.keys()
    assert len(before.keys() - after.keys()) <= 1 and len(new) <= 2
    assert all(after[name] == before[name] for name in after.keys() - new), "the others are the same files"
    assert all(torch.equal(values_of(folder)[name], value) for name, value in values.items())


def test_the_vae_alone_is_loaded_and_only_if_there_is_something_to_encode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = encode.load_model, []
    monkeypatch.setattr(encode, "load_model", lambda base, **asked: (loaded.append(asked), load(base, **asked))[1])
    for _ in range(2):
        encoded(tmp_path / "a", range(2))
    assert loaded == [{"kinds": ("vae",)}]


def test_other_shards_are_made_of_those_that_there_are(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded(tmp_path / "a", range(20))
    values = values_of(tmp_path / "a")
    monkeypatch.setattr(shards, "LIMIT", 16)
    assert len(encoded(tmp_path / "a", range(20))) == 2
    assert told() == "encode: 0 new, 20 already in the cache"
    assert all(torch.equal(values_of(tmp_path / "a")[name], value) for name, value in values.items())


def test_sets_share_latents_and_equal_shards(tmp_path: Path, told: Told) -> None:
    one, other = encoded(tmp_path / "a", range(20)), encoded(tmp_path / "b", range(10, 30))
    assert told() == "encode: 10 new, 10 already in the cache"
    again = encoded(tmp_path / "c", range(20))
    assert told() == "encode: 0 new, 20 already in the cache"
    assert one == again and one.keys() != other.keys()
    encoded(tmp_path / "d", range(5, 25))
    assert told() == "encode: 0 new, 20 already in the cache", "no shard of these was there"
    assert torch.equal(values_of(tmp_path / "a")[f"{12:016x}"], values_of(tmp_path / "d")[f"{12:016x}"])


def test_a_killed_run_goes_on_with_the_shard_it_was_at(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = encode.posterior_of, []

    def fails_at_the_tenth(*asked: object) -> object:
        if len(done) == 9:
            raise RuntimeError("killed")
        done.append(asked)
        return real(*asked)  # type: ignore[arg-type]

    monkeypatch.setattr(encode, "posterior_of", fails_at_the_tenth)
    with pytest.raises(RuntimeError, match="killed"):
        encoded(tmp_path / "a", range(20))
    monkeypatch.setattr(encode, "posterior_of", real)
    kept = sum(len(shards.read(path)) for path in STORED.iterdir())
    assert 9 - shards.LIMIT < kept <= 9
    encoded(tmp_path / "a", range(20))
    assert told() == f"encode: {20 - kept} new, {kept} already in the cache"


def test_of_a_damaged_shard_is_encoded_again_what_is_damaged(tmp_path: Path, told: Told) -> None:
    before, values = encoded(tmp_path / "a", range(20)), values_of(tmp_path / "a")
    path = max((STORED / name for name in before), key=lambda path: len(shards.read(path)))
    assert len(shards.read(path)) > 1
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(DataError, match=f"{path.name}: damaged"):
        values_of(tmp_path / "a")
    told()
    after = encoded(tmp_path / "a", range(20))
    assert told() == "encode: 1 new, 19 already in the cache"
    assert [name for name in before if after[name] != before[name]] == [path.name]
    assert path.read_bytes() == content
    assert all(torch.equal(values_of(tmp_path / "a")[name], value) for name, value in values.items())


def test_a_damaged_shard_of_the_time_before_pictures_had_checksums_gives_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors.write(path, {"a.mean": torch.ones(4), "a.std": torch.ones(4)})
    assert shards.undamaged(path).keys() == {"a"}
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    assert shards.undamaged(path) == {}


def test_a_damaged_source_gives_nothing(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    path = STORED / min(encoded(tmp_path / "a", range(12)))
    size = len(shards.read(path))
    path.write_bytes(path.read_bytes()[:-1])  # so that no tensor of it can be read
    monkeypatch.setattr(shards, "LIMIT", 12)
    encoded(tmp_path / "b", range(12))
    assert told() == f"encode: {size} new, {12 - size} already in the cache"


def test_superseded_shards_are_deleted_and_others_kept(tmp_path: Path) -> None:
    before = encoded(tmp_path / "a", range(9))
    encoded(tmp_path / "b", range(100, 102))
    for path in (tmp_path / "b/latents/tiny").iterdir():
        path.unlink()
    after = encoded(tmp_path / "a", range(10))
    (gone,) = before.keys() - after.keys()
    assert (STORED / gone).exists(), "it may be another job's work of this moment"
    for path in STORED.iterdir():
        os.utime(path, 2 * (time.time() - 2 * shards.SETTLED_S,))
    kept = {path.name for path in STORED.iterdir()} - {gone}
    encoded(tmp_path / "a", range(10))
    assert {path.name for path in STORED.iterdir()} == kept, "latents that no other shard has stay for a month"


def test_two_equal_pictures_share_their_latents(tmp_path: Path, told: Told) -> None:
    folder = write_set(tmp_path / "a", range(2))
    (folder / "train/001.png").write_bytes((folder / "train/000.png").read_bytes())
    encode_dataset(ENCODE, folder)
    assert told() == "encode: 2 new, 0 already in the cache"
    first, second = values_of(folder).values()
    assert torch.equal(first, second)


def test_an_index_without_shards_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    encoded(folder, range(2))
    index = folder / "latents/tiny" / encode.INDEX
    rows = records.read_jsonl(index)
    records.write_jsonl(index, [{**row, "key": "0" * 32} for row in rows])
    with pytest.raises(DataError, match=r"index\.jsonl: damaged: no shard has 0000"):
        values_of(folder)
    records.write_jsonl(index, [{"id": row["id"], "mirrored": False, "file": row["file"]} for row in rows])
    with pytest.raises(DataError, match="before latents were in shards; delete"):
        values_of(folder)


@pytest.mark.parametrize(
    ("family", "dtype", "less"),
    [
        ("sd", "fp32", " or encode.dtype: fp16"),
        ("sd", "fp16", ""),
        ("sdxl", "fp32", " or encode.dtype: bf16, where the card has it"),
        ("sdxl", "fp16", " or encode.dtype: bf16, where the card has it"),
        ("sdxl", "bf16", ""),
    ],
)
def test_a_full_card_is_told_with_what_takes_less(
    family: str, dtype: str, less: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDXL's VAE computes in fp32 when it is told to be in fp16: nothing would be saved."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(encode, "load_model", full)
    base = ENCODE.base.model_copy(update={"family": family})
    recipe = ENCODE.model_copy(update={"base": base, "encode": Encode.model_validate({"dtype": dtype})})
    with pytest.raises(ResourceError, match=rf"memory is full .*; less is taken by a smaller fit.size_px{less}$"):
        encode._encoder(recipe, 1)(Path("a.png"))
