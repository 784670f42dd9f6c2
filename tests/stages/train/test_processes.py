"""One training on several processes is the same training: same draws, same losses, files written once."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers import ROOT, environment, kill_all_at_work, wait_for
from safetensors.torch import load_file
from training import Place, examples, hashes, settings

from sdlora.config.params import Base
from sdlora.errors import DataError, Diverged
from sdlora.stages.train.dataset import BatchOrder
from sdlora.stages.train.processes import Share

LORA = "checkpoints/step-000004/pytorch_lora_weights.safetensors"
STARTED = """
import sys
from pathlib import Path
import pytest
from training import Place
from sdlora.config.params import Base
sys.executable = sys.argv[3]
place = Place(Path(sys.argv[1]), pytest.MonkeyPatch(), Base.model_validate_json(sys.argv[2]))
place.train(steps=16, accumulation=2, processes=2)
"""


@pytest.mark.parametrize(
    ("count", "batch_size", "accumulation"), [(1, 3, 2), (2, 1, 2), (2, 3, 4), (3, 2, 3), (2, 2, 1), (4, 4, 3)]
)
def test_each_draw_is_one_processes(count: int, batch_size: int, accumulation: int) -> None:
    order = BatchOrder.of(examples(5), 7, batch_size)
    steps = range(3)
    for step in steps:
        shared: list[tuple[int, int]] = []
        for number in range(count):
            share = Share(number, count, accumulation)
            own: list[Sequence[tuple[int, int]]] = [
                share.rows(order.draws(share.batch(index)))
                for index in range(step * share.batches, (step + 1) * share.batches)
            ]
            assert sum(map(len, own)) == batch_size * accumulation / count
            shared += [draw for rows in own for draw in rows]
        batches = range(step * accumulation, (step + 1) * accumulation)
        assert sorted(shared) == sorted(draw for batch in batches for draw in order.draws(batch))


def test_what_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"processes: 2 divides neither accumulation \(3\) nor batch_size \(1\)"):
        settings(processes=2, accumulation=3)


def losses(run: Path) -> torch.Tensor:
    with (run / "train_log.csv").open() as file:
        return torch.tensor([float(row["loss"]) for row in csv.DictReader(file)])


@pytest.fixture
def in_forks(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun and what it starts import no library anew; of sdlora a fork knows what its environment says."""
    monkeypatch.setattr(sys, "executable", str(served))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"), prepend=os.pathsep)


@pytest.mark.workflow
@pytest.mark.usefixtures("in_forks")
def test_two_processes_train_what_one_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sd: Base) -> None:
    # with Adam's usual 1e-8 a gradient's last digits turn the steps of numbers that have next to none
    options = {"batch_size": 2, "ema": {"decay": 0.9}, "cache_text": "disk", "epsilon": 1e-4}
    one = Place(tmp_path / "one", monkeypatch, small_sd).train(**options)
    place = Place(tmp_path / "two", monkeypatch, small_sd)
    two = place.train(processes=2, **options)
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-4, atol=1e-6)
    assert hashes(two).keys() == hashes(one).keys()
    ours, theirs = load_file(two / LORA), load_file(one / LORA)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)
    # and again, to the byte
    again = Place(tmp_path / "again", monkeypatch, small_sd).train(processes=2, **options)
    assert hashes(again) == hashes(two)


@pytest.mark.workflow
def test_who_is_killed_goes_on_with_another_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], small_sd: Base, served: Path
) -> None:
    folder = tmp_path / "killed"
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), str(ROOT)])
    words = [str(served), "-c", STARTED, str(folder), small_sd.model_dump_json(), str(served)]
    with subprocess.Popen(words, env={**environment(), "PYTHONPATH": path}) as started:
        wait_for(lambda: [*folder.glob(".sdlora/store/train/*/state/step-000004/manifest.json")])
        kill_all_at_work(folder)
    assert started.returncode == 128 + signal.SIGKILL
    place = Place(folder, monkeypatch, small_sd)
    resumed = place.train(steps=16, accumulation=2)
    said = capfd.readouterr().out
    assert "only the number of processes differs: resuming from step" in said and "the last digits will differ" in said
    whole = Place(tmp_path / "whole", monkeypatch, small_sd).train(steps=16, accumulation=2)
    torch.testing.assert_close(losses(resumed), losses(whole), rtol=1e-3, atol=1e-5)


@pytest.mark.workflow
@pytest.mark.usefixtures("in_forks")
def test_the_first_error_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sd: Base) -> None:
    place = Place(tmp_path / "here", monkeypatch, small_sd)
    with pytest.raises(DataError, match="one of the 2 processes of this training failed"):
        place.train(accumulation=2, processes=2, deterministic=False)  # which needs a GPU
    with pytest.raises(
        Diverged, match=r"(no longer finite|the loss is \w+) at step \d+; .*the state after step \d+ is whole"
    ):
        # decay alone multiplies weights by -99 a step: beyond fp32 on any processor
        place.train(accumulation=2, processes=2, learning_rate=10.0, weight_decay=10.0, optimizer="adamw", steps=40)
