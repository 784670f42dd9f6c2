"""What Snakemake is called with, before it does anything; and how the command `sdlora` ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from small_set import edited

from sdlora import cli
from sdlora.errors import DataError
from sdlora.flow import cards, command, freshness, plan
from sdlora.flow.command import check_options
from sdlora.flow.recipe import Recipe


@pytest.mark.parametrize("word", ["--touch", "--tou", "--to", "-t", "-nt", "-tF"])
def test_touch_is_refused_however_it_is_written(word: str) -> None:
    with pytest.raises(DataError, match="sdlora accept VERSION"):
        check_options(["--cores", "1", word, "all"])


@pytest.mark.parametrize("word", ["--target-jobs", "--trust-io-cache", "--t", "-n", "-np", "touch", "results/t", "-j4"])
def test_other_words_are_not_taken_for_it(word: str) -> None:
    check_options(["--cores", "1", word])


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_docs", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["docs"])
    assert stopped.value.code == 130 and capsys.readouterr().err.split() == ["stopped"]


def test_who_reads_may_stop_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `sdlora docs | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as ended:
            cli.main(["docs"])
        assert ended.value.code == 141, "nobody may take it for finished"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    """One of each stage."""
    folder = tmp_path_factory.mktemp("jobs")
    changes = {
        "train: {rank: 2}": "train: {rank: 2}\n    animate: {}",
        "samples: 100": "samples: 100, metrics: [effnet_lite0_distance, validation_loss]",
    }
    with chdir(folder):
        return {job.stage: job for job in plan.jobs(edited(folder, *changes.items()))}


@pytest.mark.parametrize("stage", ["caption", "encode", "train", "sample", "choose", "evaluate", "animate"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "the GPU's memory is full (CUDA out of memory.); other programs",
        ),
        (torch.AcceleratorError("CUDA error: device lost"), "the GPU failed (CUDA error: device lost): it may be lost"),
    ],
    ids=["full", "lost"],
)
def test_a_card_that_fails_is_a_sentence_in_every_stage_that_computes_on_one(
    stage: str, error: RuntimeError, said: str, jobs: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in the stage it fails: also while weights are loaded, or what is free is asked."""

    def work(recipe: Recipe) -> Iterator[Path]:
        yield tmp_path
        raise error

    job, path = jobs[stage], tmp_path / "recipe.json"
    path.write_text(job.text, "utf-8")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / f"{stage}.py"), "--recipe", str(path)])
    monkeypatch.setattr(command, "check_code", lambda *_: None)
    monkeypatch.setattr(freshness, "inputs_of", lambda _: {})
    monkeypatch.setattr(cards, "take", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        command.run(type(job), work)
    assert str(ended.value.code).startswith(f"error: {said}")
