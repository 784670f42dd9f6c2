"""Batches drawn ahead: the same bytes, one copy, and a thread that ends and whose errors are seen."""

import threading
import time
from pathlib import Path

import pytest
import torch
from benchmarks.fake_card import Reads
from training import examples, hashes, settings, small_base

from sdlora.config.params import Flip
from sdlora.errors import DataError
from sdlora.stages.train import loop
from sdlora.stages.train.ahead import DEPTH, Ahead, packed, unpacked
from sdlora.stages.train.batch import Drawn, drawn, to_device
from sdlora.stages.train.loop import Run, train_loop
from sdlora.stages.train.run import prepare, write_checkpoint

CPU = torch.device("cpu")


def run_of(**changes: object) -> Run:
    return prepare(settings(**changes), Flip(), small_base(), examples(), trigger="captain")


def test_packed_tensors_come_out_as_they_went_in() -> None:
    noise = torch.randn(2, 3)
    tensors = [torch.arange(5), noise, torch.rand(1).half(), noise, torch.zeros(0), torch.tensor(True)]
    memory = packed(tensors, pinned=False)
    assert memory.dtype == torch.uint8 and memory.nbytes == 48 + 32 + 16 + 16, "what comes twice is there once"
    found = unpacked(memory.clone(), tensors)
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(found, tensors, strict=True))


def test_results_come_in_order_and_no_more_than_a_few_wait() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        return number**2

    with Ahead(work, 3, 20) as ahead:
        time.sleep(0.05)
        assert done == [*range(3, 3 + DEPTH)]
        assert [ahead(number) for number in range(3, 20)] == [number**2 for number in range(3, 20)]
        with pytest.raises(ValueError, match="draw 20 was asked for, but 20 of 20 comes next"):
            ahead(20)
    assert done == [*range(3, 20)]
    with Ahead(work, 0, 9) as ahead, pytest.raises(ValueError, match="draw 1 was asked for, but 0 of 9"):
        ahead(1)


def test_an_error_is_raised_where_its_result_is_wanted_and_the_thread_ends() -> None:
    def work(number: int) -> int:
        if number == 2:
            raise DataError("no such picture")
        return number

    with pytest.raises(DataError, match="no such picture"), Ahead(work, 0, 9) as ahead:
        assert [ahead(0), ahead(1)] == [0, 1]
        ahead(2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("draws")]


@pytest.mark.parametrize("changes", [{}, {"batch_size": 2, "input_perturbation": 0.1, "noise": ("offset",)}])
def test_what_is_sent_is_what_was_drawn(changes: dict[str, object]) -> None:
    run = run_of(**changes)
    for number in range(3):
        batch = drawn(run, number)
        (sent,) = to_device([batch], CPU)()
        assert sent.texts == batch.texts and sent.tensors.keys() == batch.tensors.keys()
        assert all(torch.equal(sent.tensors[name], value) for name, value in batch.tensors.items())
        assert (sent.input_noise.data_ptr() == sent.noise.data_ptr()) == (not changes)


def ahead_on_a_cpu(run: Run, first: int) -> Ahead[object]:
    """What `drawing_ahead` starts on a GPU."""
    parts = run.settings.accumulation
    return Ahead(lambda number: loop.ready(run, number), first * parts, run.settings.steps * parts)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"accumulation": 2}, {"prior": {"prompt": "a head", "pictures": 1}}])
def test_drawing_ahead_trains_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdlora.stages.train.prior.INFERENCE_STEPS", 4)  # nobody looks at the class's picture
    logs = []
    for name in ("plain", "ahead"):
        run = run_of(**changes)
        if name == "ahead":
            run.ahead = ahead_on_a_cpu(run, 0)  # type: ignore[assignment]
        logs.append(train_loop(run, None, lambda state, run=run, name=name: write_checkpoint(run, tmp_path / name)))
    assert hashes(tmp_path / "plain") == hashes(tmp_path / "ahead")
    assert logs[0] == logs[1]


def test_losses_are_read_once_in_twenty_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(steps=60, checkpoint_every=60)
    monkeypatch.setattr(loop, "optimizer_step", lambda run, step: torch.tensor(float(step)))
    monkeypatch.setattr(loop, "snapshot", lambda run, step, log: loop.State(step, [], {}, {}, None, log))
    with Reads() as reads:
        log = train_loop(run, None, lambda state: None)
    assert reads.count == 3
    assert [row[:2] for row in log] == [[step + 1, step] for step in range(60)]


def test_a_drawn_batch_names_its_tensors() -> None:
    one = torch.zeros(1)
    assert Drawn(one, one, one, one, ("a",), mask=one).tensors.keys() == {
        "latents", "noise", "input_noise", "timesteps", "mask",
    }  # fmt: skip
