"""What is said of GPUs that are there, too old, or missing; no card is needed."""

import os
import runpy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, TINY
from training import settings

from sdlora import cli, gpu
from sdlora.config.params import Base
from sdlora.config.train import Train
from sdlora.errors import MissingError, ParamsError, ResourceError
from sdlora.gpu import GIB, Gpu
from sdlora.stages.train import run

T4 = Gpu("Tesla T4", 15 * GIB, (7, 5), bf16=False)
RTX = Gpu("RTX 4090", 24 * GIB, (8, 9), bf16=True)
V100 = Gpu("V100", 16 * GIB, (7, 0), bf16=False, kernels=False)


def base(dtype: str) -> Base:
    return TINY.model_copy(update={"dtype": dtype})


def train(precision: str | None, **changes: object) -> Train:
    return settings(mixed_precision=precision, **changes)


@pytest.mark.parametrize(
    ("card", "dtype", "precision", "said"),
    [
        (T4, "bf16", None, "Tesla T4 .capability 7.5. has no bf16: it would be emulated"),
        (T4, "fp32", "bf16", "has no bf16"),
        (T4, "bf16", "no", "has no bf16"),
        (RTX, "fp16", "no", "mixed_precision is no, but the base's dtype is fp16: small gradients would vanish"),
        (V100, "fp32", "no", "has no kernels for V100 .capability 7.0.: install an older build"),
        (None, "fp16", None, "fp16 needs a GPU; on a CPU use a base with dtype: fp32 or bf16"),
        (None, "fp32", "fp16", "fp16 needs a GPU"),
    ],
)
def test_what_a_machine_cannot_do_is_refused(card: Gpu | None, dtype: str, precision: str | None, said: str) -> None:
    with pytest.raises((MissingError, ParamsError), match=said):
        gpu.check(train(precision), base(dtype), card)


@pytest.mark.parametrize(
    ("card", "dtype", "precision"),
    [
        (T4, "fp16", None), (T4, "fp32", "fp16"), (T4, "fp32", "no"), (T4, "bf16", "fp16"), (RTX, "bf16", None),
        (RTX, "bf16", "no"), (RTX, "fp16", "bf16"), (None, "fp32", None), (None, "bf16", None), (None, "fp16", "no"),
        (None, "fp16", "bf16"),
    ],
)  # fmt: skip
def test_what_it_can_do_is_not(card: Gpu | None, dtype: str, precision: str | None) -> None:
    gpu.check(train(precision), base(dtype), card)


def test_a_driver_that_is_too_old_is_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "driver_version", lambda: "NVIDIA 450.2")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpu, "found", lambda: None)
    with pytest.raises(MissingError, match=r"fp16 needs a GPU; .* \(a driver is there \(NVIDIA 450\.2\), but torch"):
        gpu.check(train(None), base("fp16"), None)
    assert "built for CUDA 13.0, cannot use it" in (gpu.unused() or "")
    monkeypatch.setattr(gpu, "found", lambda: RTX)
    assert gpu.unused() is None


def test_several_rtx_40_with_an_older_driver_do_not_stop_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")
    for name in names:
        monkeypatch.setenv(name, "")  # comes back as it was
        monkeypatch.delenv(name)
    monkeypatch.setattr(run, "check_cuda_p2p_ib_support", lambda: True)
    run.allow_older_drivers()
    assert not any(name in os.environ for name in names)
    monkeypatch.setattr(run, "check_cuda_p2p_ib_support", lambda: False)
    monkeypatch.setenv("NCCL_IB_DISABLE", "0")
    run.allow_older_drivers()
    assert [os.environ[name] for name in names] == ["1", "0"], "what a user says counts"


def test_a_film_in_bf16_is_made_where_the_card_has_it() -> None:
    gpu.check_film("bf16", RTX)
    gpu.check_film("bf16", None)
    with pytest.raises(MissingError, match=r"Tesla T4 .* has no bf16: .* set animate.dtype: fp16"):
        gpu.check_film("bf16", T4)


def test_bf16_that_torch_would_emulate_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default torch counts emulation, and a T4 then has bf16."""
    about = SimpleNamespace(name="Tesla T4", total_memory=15 * GIB, major=7, minor=5)
    for name, answer in {
        "is_available": lambda: True,
        "get_device_properties": lambda device: about,
        "get_arch_list": lambda: ["sm_75", "sm_90"],
        "is_bf16_supported": lambda including_emulation=True: including_emulation,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    assert gpu.found() == T4


def test_only_a_gpu_has_faster_algorithms_to_choose() -> None:
    gpu.check(train(None, deterministic=False), base("fp32"), RTX)
    with pytest.raises(MissingError, match="deterministic: false needs a GPU"):
        gpu.check(train(None, deterministic=False), base("fp32"), None)


def test_only_a_gpu_compiles() -> None:
    gpu.check(train(None, compile="blocks"), base("fp32"), RTX)
    assert gpu.concerns(train(None, compile="blocks"), base("fp32"))
    with pytest.raises(MissingError, match="compile: blocks needs a GPU; on a CPU"):
        gpu.check(train(None, compile="blocks"), base("fp32"), None)


def test_torch_is_asked_only_where_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_DRIVERS", ("/nowhere",))
    assert not gpu.concerns(train(None), base("fp32"))
    assert not gpu.concerns(train(None), base("bf16"))
    assert gpu.concerns(train(None), base("fp16"))
    assert gpu.concerns(train(None, deterministic=False), base("fp32"))
    monkeypatch.setattr(gpu, "_DRIVERS", ("/dev/null",))
    assert gpu.concerns(train(None), base("bf16"))


@pytest.mark.parametrize(
    ("capability", "built_for", "expected"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90", "compute_90"], False),
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((12, 0), ["sm_90", "sm_120a"], True),
        ((6, 0), ["sm_75", "compute_75"], False),
        ((9, 0), ["gfx90a"], True),
        ((9, 0), [], True),
    ],
)
def test_a_build_runs_on_its_cards_and_those_its_driver_translates_for(
    capability: tuple[int, int], built_for: list[str], expected: bool
) -> None:
    assert gpu.has_kernels(capability, built_for) is expected


def test_a_full_gpu_is_a_sentence() -> None:
    torchs = "CUDA out of memory. Tried to allocate 2.00 GiB. If reserved but unallocated memory is large try setting X"
    with (
        pytest.raises(ResourceError, match=r"memory is full \(CUDA out of memory. .* 2.00 GiB\); take less$") as told,
        gpu.told_when_it_fails(lambda: "take less"),
    ):
        raise torch.OutOfMemoryError(torchs)
    assert isinstance(told.value.__cause__, torch.OutOfMemoryError)
    with pytest.raises(RuntimeError, match="other"), gpu.told_when_it_fails(lambda: "take less"):
        raise RuntimeError("other")


def test_a_card_that_another_program_fills_is_full_and_not_lost() -> None:
    """The first call on it then fails with an error of the card, which has no class of memory."""
    error = torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
    said = r"the GPU's memory is full \(CUDA error: out of memory\); take less$"
    with pytest.raises(ResourceError, match=said), gpu.told_when_it_fails(lambda: "take less"):
        raise error


def test_a_full_machine_is_a_sentence() -> None:
    with (
        pytest.raises(ResourceError, match=r"the machine's memory is full \(.*4503599627370496 bytes.*\); take less$"),
        gpu.told_when_it_fails(lambda: "take less"),
    ):
        torch.empty(2**52, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
)
def test_a_lost_card_is_a_sentence_that_says_what_is_safe(error: Exception) -> None:
    first = str(error).splitlines()[0]
    with (
        pytest.raises(ResourceError, match=rf"the GPU failed \({first}\): it may be lost, .*; all is kept$"),
        gpu.told_when_it_fails(lambda: "take less", lambda: "all is kept"),
    ):
        raise error


@pytest.mark.parametrize(
    ("card", "built_for", "driver", "said"),
    [
        (None, None, None, "fp16 needs a GPU"),
        (None, "13.0", None, "fp16 needs a GPU"),
        (
            None,
            "13.0",
            "NVIDIA 535.1",
            "(NVIDIA 535.1), but torch, built for CUDA 13.0, cannot use it, and all runs on",
        ),
        (None, None, "NVIDIA 535.1", "torch is a CPU build"),
        (
            T4,
            "13.0",
            "NVIDIA 580.1",
            "15.0 GiB, capability 7.5, bf16 only emulated; use mixed_precision: fp16; SD 1.5,",
        ),
        (RTX, "13.0", "NVIDIA 580.1", "bf16 in hardware; use mixed_precision: bf16; SD 1.5, SDXL (drawn"),
        (replace(T4, memory=15 * GIB), "13.0", None, "fp16; SD 1.5, SDXL with gradient_checkpointing"),
        (replace(T4, memory=int(15.6 * GIB)), "13.0", None, "fp16; SD 1.5, SDXL (drawn one by one"),
        (replace(T4, memory=6 * GIB), "13.0", None, "SD 1.5 at 512 px with gradient_checkpointing"),
        (V100, "13.0", "NVIDIA 580.1", "no kernels for its capability 7.0"),
    ],
)
def test_the_doctor_says_which_settings_fit(card: Gpu | None, built_for: str, driver: str, said: str) -> None:
    assert said in gpu.advice(card, built_for, driver)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_doctor_of_a_machine_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.found() is None
    cli.main(["doctor"])
    card = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("card "))
    assert "CPU" in card


def test_windows_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(SystemExit, match="on Windows, use WSL 2"):
        runpy.run_path(str(ROOT / "src/sdlora/__init__.py"))
