"""Compiled blocks: the same training to rounding, every block engaged, and what is said of the time."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from shapes import save_small_sdxl
from torch._dynamo.utils import counters
from training import examples, settings

from sdlora.config.params import Base, Flip
from sdlora.errors import ParamsError, ResourceError
from sdlora.memory import preflight
from sdlora.stages.train.compiled import compile_blocks, told
from sdlora.stages.train.loop import Run, always_alike, optimizer_step
from sdlora.stages.train.run import prepare


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_small_sdxl(tmp_path_factory.mktemp("sdxl"), depth=1)


def run_of(base: Base, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Of layers as a GPU has them: nothing of them is packed."""
    monkeypatch.setattr("sdlora.cpu.packed.LARGEST_BYTES", 0)
    torch._dynamo.reset()
    return prepare(settings(), Flip(), base, examples(1), trigger="captain")


@pytest.mark.parametrize(
    "backend", [pytest.param("aot_eager", marks=pytest.mark.slow), pytest.param("inductor", marks=pytest.mark.workflow)]
)
def test_a_compiled_training_is_the_plain_one_to_rounding(
    base: Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain, run = run_of(base, monkeypatch), run_of(base, monkeypatch)
    counters.clear()
    compile_blocks(run, backend)
    assert "train: blocks compiled in" in capsys.readouterr().out
    assert counters["stats"]["unique_graphs"] >= 1 and not counters["graph_break"], "it engaged, in one piece"
    assert all(parameter.grad is None for parameter in run.parameters)
    losses = [[float(optimizer_step(one, step)) for step in range(3)] for one in (plain, run)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(plain.parameters, run.parameters, strict=True))


@pytest.mark.workflow
def test_without_a_compiler_there_is_a_sentence(base: Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    run = run_of(base, monkeypatch)
    with pytest.raises(
        ResourceError, match=r"train.compile: blocks failed \(.*no-such-compiler.*\); set compile: none"
    ):
        compile_blocks(run)


def test_when_it_pays_is_said() -> None:
    assert told(30.0, 0.2, 0.15).endswith(
        "compiled in 30 s; a pass takes 150.0 ms in place of 200.0 ms: that pays after 600 passes of a shape"
    )
    assert told(30.0, 0.2, 0.21).endswith("compile: blocks does not pay here")


def test_what_is_not_compiled_is_refused(small_sd3: Base) -> None:
    with pytest.raises(ParamsError, match=r"train\.compile: diffusers does not say which blocks family sd3 repeats"):
        preflight.predict(settings(compile="blocks"), small_sd3, preflight.Demand((16, 16, 16)), torch.device("cpu"))
    for option in ({"lora_type": "lokr"}, {"dropout": 0.1}, {"gradient_checkpointing": True}):
        with pytest.raises(ValidationError, match="compile: blocks was not tried with lora_type loha or lokr"):
            settings(compile="blocks", **option)


def test_compiled_blocks_are_not_traced(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(base, monkeypatch)
    assert always_alike(run)
    run.settings = settings(compile="blocks")
    assert not always_alike(run)
