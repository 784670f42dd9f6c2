"""One version's training as its job calls it: two places, more steps, damage, a full disk, another run's state."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from power_cut import CUTS
from torch import Tensor
from training import Place, hashes, header_of

from sdlora.config.params import Base
from sdlora.errors import DataError, ResourceError
from sdlora.stages.train import loop
from sdlora.stages.train.recipe import DONE

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sd: Base) -> Place:
    return Place(tmp_path / "here", monkeypatch, small_sd)


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sd: Base) -> Place:
    return Place(tmp_path / "elsewhere", monkeypatch, small_sd)


def staged(*stages: tuple[int, float, str]) -> dict[str, object]:
    rows = [{"until_step": until, "learning_rate": rate, "schedule": kind} for until, rate, kind in stages]
    return {"lr_schedule": "staged", "lr_stages": tuple(rows)}


def test_two_places_give_the_same_files(place: Place, other: Place) -> None:
    once = hashes(place.train())
    other.train(version="before", rank=3)
    assert hashes(other.train()) == once
    assert {"README.md", "config.yaml", "train_log.csv"} < once.keys()
    named = "a-step000002-comfyui-a1111"
    assert {f"export/step-000002/{named}{kind}" for kind in (".safetensors", ".json")} | {
        "checkpoints/step-000002/pytorch_lora_weights.safetensors"
    } == {name for name in once if "/step-000002/" in name}


def test_versions_share_a_run_but_carry_their_own_name(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    first = place.train()
    second = place.train(version="b")
    assert "were trained before" in capsys.readouterr().out
    lora = "checkpoints/step-000004/pytorch_lora_weights.safetensors"
    assert (first / lora).read_bytes() == (second / lora).read_bytes()
    names = [header_of(p)["ss_output_name"] for p in second.rglob("b-step*.safetensors")]
    assert sorted(names) == ["b-step000002", "b-step000004"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"steps": 7}),
        ({"optimizer": "adamw8bit"}, {"optimizer": "adamw8bit", "steps": 6}),
        (
            {"lr_schedule": "constant_with_warmup", "lr_warmup_steps": 3},
            {"lr_schedule": "constant_with_warmup", "lr_warmup_steps": 3, "steps": 6},
        ),
        (staged((4, 5e-4, "constant")), {"steps": 6, **staged((4, 5e-4, "constant"), (6, 2e-4, "cosine"))}),
        (staged((4, 5e-4, "constant")), {"steps": 6, **staged((6, 5e-4, "constant"))}),
    ],
    ids=["constant", "8-bit", "warm-up", "one more stage", "a longer stage"],
)  # fmt: skip
def test_a_finished_version_goes_on_with_more_steps(
    place: Place, other: Place, before: dict[str, object], after: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    place.train(**before)
    capsys.readouterr()
    longer = place.train(**after)
    assert "resuming from step 4" in capsys.readouterr().out
    assert hashes(longer) == hashes(other.train(**after))


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({"lr_schedule": "cosine"}, {"lr_schedule": "cosine", "steps": 6},
         "lr_schedule cosine depends on the total: the rate of step 2 was 0.000853553 and would be 0.000933013"),
        (staged((4, 5e-4, "cosine")), {"steps": 6, **staged((6, 5e-4, "cosine"))}, "depends on the total"),
        ({"checkpoint_every": 4}, {"steps": 6}, "it kept no checkpoint at step 2"),
    ],
    ids=["cosine", "a stage's cosine", "checkpoints"],
)  # fmt: skip
def test_where_it_cannot_go_on_it_says_so_and_trains_anew(
    place: Place,
    other: Place,
    before: dict[str, object],
    after: dict[str, object],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place.train(**before)
    capsys.readouterr()
    longer = place.train(**after)
    said = capsys.readouterr().out
    assert "differs only in its length (4 steps)" in said and reason in said and "from the start" in said
    assert hashes(longer) == hashes(other.train(**after))


def test_the_longest_run_that_fits_is_taken(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.train(steps=2, **staged((2, 5e-4, "constant")))
    place.train(**staged((4, 5e-4, "cosine")))
    capsys.readouterr()
    place.train(steps=6, **staged((2, 5e-4, "constant"), (6, 1e-4, "constant")))
    said = capsys.readouterr().out
    assert "resuming from step 2" in said and "from the start" not in said


def test_another_run_is_no_beginning(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.train()
    capsys.readouterr()
    place.train(steps=6, seed=7)
    assert "going on" not in capsys.readouterr().out


def test_a_damaged_run_is_trained_again(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    once = hashes(place.train())
    (run,) = place.runs()
    kept = run / "checkpoints/step-000002/pytorch_lora_weights.safetensors"
    content = bytearray(kept.read_bytes())
    content[-2] ^= 1
    kept.write_bytes(content)
    place.train(steps=6)
    assert "its files are damaged; training from the start" in capsys.readouterr().out
    assert hashes(place.train()) == once, "what is damaged is not published"
    assert "were trained before" not in capsys.readouterr().out


def unfinish(run: Path) -> None:
    """Make a finished run look like one whose process was killed while it wrote a file."""
    (run / DONE).unlink()
    (run / "checkpoints/step-000004/pytorch_lora_weights.safetensors.77.part").write_bytes(b"half")


@pytest.mark.parametrize("cut", CUTS)
def test_a_checkpoint_that_a_power_cut_took_is_made_again(place: Place, cut: str) -> None:
    """The state is whole and after it: whoever went on from there would publish what is left of the checkpoint."""
    once = hashes(place.train())
    run = place.runs()[0]
    unfinish(run)
    CUTS[cut](run / "checkpoints/step-000002/pytorch_lora_weights.safetensors")
    assert hashes(place.train()) == once


@pytest.mark.parametrize("cut", CUTS)
def test_the_note_that_a_run_is_whole_may_be_what_a_power_cut_took(place: Place, cut: str) -> None:
    once = hashes(place.train())
    CUTS[cut](place.runs()[0] / DONE)
    assert hashes(place.train()) == once


def test_a_run_stopped_under_other_code_is_named_and_left(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.train()
    unfinish(place.runs()[0])
    capsys.readouterr()
    place.train(code="c2")
    said = capsys.readouterr().out
    assert 'stopped at step 4, but to resume it would mix two trainings: code was "c1" and is "c2"' in said
    assert "from the start" in said


def test_what_a_killed_process_left_is_not_published(place: Place) -> None:
    once = hashes(place.train())
    unfinish(place.runs()[0])
    assert hashes(place.train()) == once


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"only root may mount a small disk: {done.stderr}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.workflow
def test_a_full_disk_is_told_and_training_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, other = (Place(folder, monkeypatch) for folder in (small_disk / "here", tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=r"No space left on device; .* MiB are free.*the state after step 2 is whole"):
        place.train()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    found = hashes(place.train())
    assert "resuming from step 2 of 4" in capsys.readouterr().out
    assert found == hashes(other.train())


def failing(monkeypatch: pytest.MonkeyPatch, passes: int, failure: Exception | float) -> None:
    """After so many forward passes the loss is a number, or the device fails, once."""
    left, whole = [passes], loop.loss_of

    def loss_of(*arguments: Any) -> Tensor:
        left[0] -= 1
        if left[0] == -1 and isinstance(failure, Exception):
            raise failure
        return whole(*arguments) * (failure if left[0] == -1 else 1)

    monkeypatch.setattr(loop, "loss_of", loss_of)


def test_after_a_lost_card_training_goes_on_from_the_last_good_state(
    place: Place, other: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, 3, torch.AcceleratorError("CUDA error: unspecified launch failure"))
    with pytest.raises(ResourceError, match=r"the GPU failed .*the state after step 2 is whole \(.*\): start again"):
        place.train()
    found = hashes(place.train())
    assert "resuming from step 2 of 4" in capsys.readouterr().out
    assert found == hashes(other.train())


def test_full_memory_is_told_with_what_saves_some(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with pytest.raises(ResourceError, match=r"(?s)memory is full .*batch_size: 1, .* GiB \(\d.\d+ GiB less\)"):
        place.train(batch_size=4)


@pytest.mark.parametrize(("passes", "said"), [(2, "the loss is nan at step 3"), (3, "the loss is inf at step 4")])
def test_a_loss_that_is_no_number_leaves_the_last_good_state(
    place: Place, monkeypatch: pytest.MonkeyPatch, passes: int, said: str
) -> None:
    failing(monkeypatch, passes, float(said.split()[3]))
    with pytest.raises(DataError, match=rf"{said}; .*the state after step 2 is whole \(.*\), and so are the LoRAs"):
        place.train()
    (run,) = place.runs()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]


def test_a_lora_that_is_no_number_is_not_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last loss before a checkpoint can be sound, and the step after it not."""
    step = loop.ema.update

    def broken(settings: Any, average: list[Tensor], *others: Any) -> None:
        step(settings, average, *others)
        if others[-1] == 4:
            average[0].fill_(float("nan"))

    monkeypatch.setattr(loop.ema, "update", broken)
    with pytest.raises(DataError, match=r"the LoRA is no longer finite at step 4; .*the state after step 2 is whole"):
        place.train(ema={})
    (run,) = place.runs()
    assert sorted(path.name for path in (run / "state").iterdir()) == ["step-000002"]


def test_a_state_copied_from_another_run_is_refused(place: Place) -> None:
    place.train()
    (first,) = place.runs()
    place.train(seed=7)
    (second,) = set(place.runs()) - {first}
    unfinish(second)
    for part in sorted((first / "state").rglob("*.*")):
        target = second / part.relative_to(first)
        target.write_bytes(part.read_bytes())
    with pytest.raises(
        DataError, match=r"is no state of this run: train\.seed was 42 and is 7; set that back, or delete"
    ):
        place.train(seed=7)
