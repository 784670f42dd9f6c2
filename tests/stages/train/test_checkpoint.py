"""States: equal bytes for equal states, exact types, and what happens when a disk or a file fails."""

import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from prodigyopt import Prodigy
from safetensors.torch import load
from torch import nn

from sdlora import records, tensors
from sdlora.errors import DataError
from sdlora.flow.identity import differing, identity_of, section
from sdlora.stages.train import canonical
from sdlora.stages.train.checkpoint import MANIFEST, TENSORS, TREE, State, newest_state, save_state
from sdlora.stages.train.optimizers import bitsandbytes_optim

IDENTITY = {"train.rank": 4, "train.seed": 1, "train.lr_schedule": "cosine", "base_identity": "sha256:a", "code": "c1",
            "dataset.flip": "d1"}  # fmt: skip


def exactly(one: Any, other: Any) -> bool:
    """Equal to the last bit and of the same types, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(exactly(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(exactly, one, other))
    if isinstance(one, float):
        return one.hex() == other.hex()
    return bool(one == other)


def round_trip(value: Any) -> Any:
    text, found = canonical.flatten(value)
    return canonical.unflatten(text, load(b"".join(tensors.pieces(found))))


NESTED = {
    "int": 3, "float": 3.0, "true": True, "none": None, "text": "é", "inf": math.inf, "minus": -math.inf,
    "nan": math.nan, "zero": -0.0, "tiny": 5e-324,
    "tuple": (1, (2.0,), []), "list": [{}, {"a": []}], "ints": {10: "x", 9: "y"},
    "scalar": torch.tensor(7.0), "step": torch.tensor(3, dtype=torch.int64),
    "uint8": torch.arange(5, dtype=torch.uint8), "small": torch.ones(2, dtype=torch.int8),
    "bf16": torch.randn(3, 2).bfloat16(), "half": torch.ones(1).half(), "bool": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4), "strided": torch.arange(6.0).reshape(2, 3).T, "double": torch.tensor(0.1).double(),
}  # fmt: skip


def test_every_type_comes_back_exactly() -> None:
    assert exactly(round_trip(NESTED), {**NESTED, "strided": NESTED["strided"].contiguous()})


def test_equal_states_have_equal_bytes_whatever_they_share_and_in_whatever_order() -> None:
    shared = torch.ones(2)
    one = {"b": shared, "a": [shared, shared[:]], "i": {2: 1.0, 1: 2.0}}
    other = {"i": {1: 2.0, 2: 1.0}, "a": [torch.ones(2), torch.ones(4)[::2]], "b": torch.ones(2)}
    (text, found), (text_again, found_again) = canonical.flatten(one), canonical.flatten(other)
    assert text == text_again
    assert b"".join(tensors.pieces(found)) == b"".join(tensors.pieces(found_again))
    assert canonical.flatten({**other, "i": {1: 2, 2: 1.0}})[0] != text, "2 is not 2.0"


def test_a_type_that_cannot_be_kept_is_named() -> None:
    with pytest.raises(TypeError, match=r"optimizer\.groups\.0\.rate: set"):
        canonical.flatten({"optimizer": {"groups": [{"rate": {1}}]}})
    with pytest.raises(TypeError, match="two tensors have this path"):
        canonical.flatten({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})


def test_metadata_has_one_order() -> None:
    metadata = {f"key{n}": str(n) for n in range(50)}
    backwards = dict(reversed(metadata.items()))
    once = [b"".join(tensors.pieces({"x": torch.ones(3)}, each)) for each in (metadata, backwards)]
    assert once[0] == once[1]


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw8bit": lambda p: bitsandbytes_optim().AdamW8bit(p, lr=1e-2),
    "prodigy": lambda p: Prodigy(p, lr=1.0, use_bias_correction=True, safeguard_warmup=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_survives_and_goes_on_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    def built() -> tuple[nn.Linear, Any, Any]:
        torch.manual_seed(0)
        layer = nn.Linear(96, 96)  # large enough for blocks of 8-bit moments
        optimizer = OPTIMIZERS[name](layer.parameters())
        return layer, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def steps(layer: nn.Linear, optimizer: Any, schedule: Any, first: int, count: int) -> None:
        for step in range(first, first + count):
            torch.manual_seed(step)
            layer(torch.randn(4, 96)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    def state(step: int, layer: nn.Linear, optimizer: Any, schedule: Any) -> State:
        weights = [p.detach().clone() for p in layer.parameters()]
        return State(step, weights, optimizer.state_dict(), schedule.state_dict(), None, [[1, 0.5, 1e-2]], ema=weights)

    straight, halves = built(), built()
    steps(*straight, 0, 6)
    steps(*halves, 0, 3)
    save_state(tmp_path / "halves", state(3, *halves))
    saved = newest_state(tmp_path / "halves")
    assert saved is not None and exactly(vars(saved), vars(state(3, *halves)))
    halves = built()
    with torch.no_grad():
        for parameter, value in zip(halves[0].parameters(), saved.parameters, strict=True):
            parameter.copy_(value)
    halves[1].load_state_dict(saved.optimizer)
    halves[2].load_state_dict(saved.lr_schedule)
    steps(*halves, 3, 3)
    for folder, run in (("straight", straight), ("halves", halves)):
        save_state(tmp_path / folder, state(6, *run))
    for file in (TENSORS, TREE, MANIFEST):
        pair = [(tmp_path / folder / "state/step-000006" / file).read_bytes() for folder in ("straight", "halves")]
        assert pair[0] == pair[1], file


def small(step: int, size: int = 1000) -> State:
    values = torch.full((size,), float(step))
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": step}
    return State(step, [values], {"state": {0: {"m": values}}, "param_groups": []}, {}, scaler, [[step, 1.0, 1e-4]])


def test_only_the_newest_states_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_state(tmp_path, small(step))
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step-000002", "step-000003"]


def test_damaged_states_do_not_outlive_those_that_are_made_again(tmp_path: Path) -> None:
    for step in (8, 9):
        save_state(tmp_path, small(step))
        flip_bit(tmp_path / f"state/step-{step:06d}" / TENSORS, -9)
    for step in (1, 2, 3):
        save_state(tmp_path, small(step))
        state = newest_state(tmp_path)
        assert state is not None and state.step == step


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit in the tensors": lambda folder: flip_bit(folder / TENSORS, -9),
    "a flipped bit in the rest": lambda folder: flip_bit(folder / TREE, 20),
    "a flipped bit in the manifest": lambda folder: flip_bit(folder / MANIFEST, 30),
    "truncated tensors": lambda folder: os.truncate(folder / TENSORS, 700),
    "a truncated manifest": lambda folder: os.truncate(folder / MANIFEST, 40),
    "empty tensors": lambda folder: os.truncate(folder / TENSORS, 0),
    "an empty manifest": lambda folder: os.truncate(folder / MANIFEST, 0),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "no tensors": lambda folder: (folder / TENSORS).unlink(),
    "a manifest that is no object": lambda folder: (folder / MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_undamaged_state_is_taken(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save_state(tmp_path, small(step), IDENTITY)
    DAMAGES[damage](tmp_path / "state/step-000002")
    state = newest_state(tmp_path, IDENTITY)
    assert state is not None and exactly(vars(state), vars(small(1)))
    assert "skipping the damaged state step-000002" in capsys.readouterr().out
    save_state(tmp_path, small(2), IDENTITY)  # training goes on and makes it again
    again = newest_state(tmp_path, IDENTITY)
    assert again is not None and exactly(vars(again), vars(small(2)))


def test_a_run_without_a_whole_state_starts_anew(tmp_path: Path) -> None:
    assert newest_state(tmp_path) is None
    save_state(tmp_path, small(1))
    flip_bit(tmp_path / "state/step-000001" / TREE, 20)
    assert newest_state(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("train.rank", 8, "train.rank was 4 and is 8"),
        ("train.seed", 2, "train.seed was 1 and is 2"),
        ("train.lr_schedule", "constant", 'train.lr_schedule was "cosine" and is "constant"'),
        ("base_identity", "sha256:b", 'base_identity was "sha256:a" and is "sha256:b"'),
        ("dataset.flip", "d2", 'dataset.flip was "d1" and is "d2"'),
        ("code", "c2", 'code was "c1" and is "c2"'),
    ],
)
def test_a_state_of_another_run_is_refused_by_name(tmp_path: Path, name: str, value: object, words: str) -> None:
    save_state(tmp_path, small(1), IDENTITY)
    with pytest.raises(DataError) as error:
        newest_state(tmp_path, {**IDENTITY, name: value})
    assert words in str(error.value)
    assert str(error.value).count(" was ") == 1, "only what differs is named"


def test_identity_names_every_value_of_the_recipe(tmp_path: Path) -> None:
    records.write_json(tmp_path / "flip.json", {"recipe": "", "inputs": {}, "outputs": {"a": "1"}})
    recipe = {"code": "c", "train": {"rank": 4, "betas": [0.9, 0.99], "extra": {"x": 1}}, "software": {"torch": "2"}}
    identity = identity_of(recipe, [tmp_path / "flip.json"])
    assert {"code", "train.rank", "train.betas", "train.extra.x", "software.torch", "dataset.flip"} == identity.keys()
    assert section(identity, "train") == recipe["train"]
    records.write_json(tmp_path / "flip.json", {"recipe": "", "inputs": {}, "outputs": {"a": "2"}})
    assert differing(identity, identity_of(recipe, [tmp_path / "flip.json"])) == ["dataset.flip"]


def in_a_child(work: Any) -> tuple[int, str]:
    """Run `work` in a fork, so that its limits and its end are its own; its exit code and what it wrote."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(work()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as handle:
        text = handle.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@pytest.mark.workflow
def test_a_file_that_may_not_grow_leaves_the_state_before(tmp_path: Path) -> None:
    save_state(tmp_path, small(1), IDENTITY)
    large = small(2, size=100_000)

    def save_with_a_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        save_state(tmp_path, large, IDENTITY)

    code, text = in_a_child(save_with_a_limit)
    assert code == 1 and text.startswith("DataError") and "the state after step 1 is whole" in text, text
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["step-000001"]
    state = newest_state(tmp_path, IDENTITY)
    assert state is not None and exactly(vars(state), vars(small(1)))


@pytest.fixture
def full_disk(tmp_path: Path) -> Any:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"only root may mount a small disk; the limit on a file's size above stands in: {done.stderr}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.workflow
def test_a_full_disk_leaves_the_state_before(full_disk: Path) -> None:
    save_state(full_disk, small(1), IDENTITY)
    with pytest.raises(DataError, match=r"No space left on device.*the state after step 1 is whole.*free some space"):
        save_state(full_disk, small(2, size=100_000), IDENTITY)
    state = newest_state(full_disk, IDENTITY)
    assert state is not None and state.step == 1
    save_state(full_disk, small(2), IDENTITY)  # there is room again
    again = newest_state(full_disk, IDENTITY)
    assert again is not None and again.step == 2


def killed_at(event: int, work: Any) -> bool:
    """Whether `work`, in a fork that kills itself at its n-th call that touches files, was killed."""
    child = os.fork()
    if child == 0:
        left = [event]

        def hook(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "open" or name.startswith(("os.", "shutil.")):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.workflow
@pytest.mark.parametrize(("saved", "possible"), [(3, (2, 3)), (2, (1, 2))], ids=["the next", "a damaged one again"])
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_state(
    tmp_path: Path, saved: int, possible: tuple[int, int]
) -> None:
    whole = tmp_path / "whole"
    for step in (1, 2):
        save_state(whole, small(step), IDENTITY)
    if saved == 2:
        flip_bit(whole / "state/step-000002" / TENSORS, -9)
    state_to_save = small(saved)
    found, event = [], 1
    while True:
        run = tmp_path / f"killed-{event}"
        shutil.copytree(whole, run)
        killed = killed_at(event, lambda run=run: save_state(run, state_to_save, IDENTITY))
        state = newest_state(run, IDENTITY)
        assert state is not None and state.step in possible, event
        assert exactly(vars(state), vars(small(state.step)))
        found.append(state.step)
        save_state(run, small(4), IDENTITY)
        assert not list((run / "state").glob(".*")), "what a killed process left is cleared away"
        if not killed:
            break
        event += 1
    assert event > 8 and found[0] == possible[0] and found[-1] == possible[1]
    assert found == sorted(found), "once a state is there it stays"
