"""What Snakemake is called with, before it does anything; and how the command `sdlora` ends."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_set import edited

from sdlora import cli, gpu
from sdlora.config.params import Encode
from sdlora.errors import DataError, ResourceError
from sdlora.flow import cards, command, freshness, plan
from sdlora.flow.command import check_options
from sdlora.flow.recipe import Recipe
from sdlora.gpu import Gpu
from sdlora.progress import Progress
from sdlora.stages.animate import animate
from sdlora.stages.sample import sample


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
        "train: {rank: 2}": "train: {rank: 2}\n    animate: {dtype: fp32}",
        "samples: 100": "samples: 100, metrics: [effnet_lite0_distance, validation_loss]",
    }
    with chdir(folder):
        return {job.stage: job for job in plan.jobs(edited(folder, *changes.items()))}


def ended_with(job: Recipe, work: Callable[..., Iterable[Path]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a job ends with that fails."""
    path = folder / "recipe.json"
    path.write_text(job.text, "utf-8")
    monkeypatch.setattr(sys, "argv", [str(folder / f"{job.stage}.py"), "--recipe", str(path)])
    monkeypatch.setattr(command, "check_code", lambda *_: None)
    monkeypatch.setattr(freshness, "inputs_of", lambda _: {})
    monkeypatch.setattr(cards, "take", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        command.run(type(job), work)
    return str(ended.value.code)


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

    assert ended_with(jobs[stage], work, tmp_path, monkeypatch).startswith(f"error: {said}")


def test_a_job_says_itself_what_its_machine_cannot_do(
    jobs: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster, whose nodes are others than the one that plans."""
    half = Gpu("V100", 2**34, (7, 0), bf16=False)
    monkeypatch.setattr(gpu, "found", lambda: half)
    monkeypatch.setattr(gpu, "is_likely", lambda: True)
    recipe = jobs["encode"].model_copy(update={"encode": Encode(dtype="bf16")})
    assert ended_with(recipe, lambda _: [], tmp_path, monkeypatch).startswith(
        "error: V100 (capability 7.0) has no bf16"
    )


def test_a_job_says_why_it_computes_on_the_cpu_beside_a_card(
    jobs: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A driver that is too old for torch: days would pass before somebody looks."""

    def stop(recipe: Recipe) -> list[Path]:
        raise DataError("enough")

    monkeypatch.setattr(gpu, "found", lambda: None)
    for driver, said in (("NVIDIA 450.2", True), (None, False)):
        monkeypatch.setattr(gpu, "driver_version", lambda driver=driver: driver)
        ended_with(jobs["encode"], stop, tmp_path, monkeypatch)
        assert ("note: computing on the CPU: a driver is there" in capsys.readouterr().out) == said


def test_who_draws_or_films_says_what_takes_less(
    jobs: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(animate, "picture_of", lambda *_: tmp_path / "a.png")
    monkeypatch.setattr(animate, "load", full)
    with pytest.raises(ResourceError, match=r"memory is full .*; a smaller animate\.decode_chunk_size, or fewer"):
        animate.animate_version(jobs["animate"])
    monkeypatch.setattr(sample, "_draw_missing", full)
    with pytest.raises(ResourceError, match=r"; less is taken by .*sample\.decode: tiled or no sample\.hires or a"):
        sample._publish(None, jobs["sample"], 0, None, [], tmp_path, Path(), Progress("sample", 1))
