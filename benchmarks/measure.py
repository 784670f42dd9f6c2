"""Clocks, the bare lower bound, the machine's matmul rate and peak memory."""

import ctypes
import gc
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageOps
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from sdlora import records
from sdlora.config.params import Base, Encode, Flip
from sdlora.config.train import Train
from sdlora.flow import inputs
from sdlora.flow.hashing import FileHashes
from sdlora.models import load_model
from sdlora.randomness import generator
from sdlora.stages.encode.encode import encode_dataset
from sdlora.stages.encode.recipe import EncodeRecipe
from sdlora.stages.train.batch import draw_batch
from sdlora.stages.train.dataset import load_examples
from sdlora.stages.train.loop import Run, optimizer_step, passed, passes_of
from sdlora.stages.train.run import prepare

NAME = "bench"
TINY = Base(model="models/tiny-sd", family="sd", size_px=64, captioner="-")
CAPTAIN = Path("data/embedded/captain/train")
CUDA = torch.cuda.is_available()


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


def _linear(x: Any, weight: Any, *rest: Any, out_shape: Any) -> int:
    return int(2 * math.prod(out_shape) * x[-1])


def _convolution(x: Any, weight: Any, *rest: Any, out_shape: Any) -> int:
    return int(2 * math.prod(out_shape) * math.prod(weight[1:]))


# torch counts the GPU's attention kernels, not the CPU's, and no packed layers
_CPU_OPERATORS = {
    torch.ops.mkldnn._linear_pointwise: _linear,
    torch.ops.mkldnn._convolution_pointwise: _convolution,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def synchronize() -> None:
    """Wait for the device."""
    if CUDA:
        torch.cuda.synchronize()


def write_dataset(folder: Path, base: Base, side_px: int, count: int, threads: int) -> Path:
    """A fitted, captioned and encoded dataset of the embedded character, as the stages write it."""
    rows = []
    for number, source in enumerate(sorted(CAPTAIN.glob("*.png"))[:count]):
        path = folder / "train" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as picture:
            ImageOps.pad(picture.convert("RGB"), (side_px, side_px)).save(path)
        text = f"captain, picture number {number}"
        side = [side_px, side_px]
        place = {"bucket": side, "box": [0, 0, *side], "original": side, "corner": [0, 0], "repeats": 1}
        rows.append({"file_name": path.name, "id": f"{number:03d}", "mirrored": False, "text": text, **place})
    records.write_jsonl(folder / "train" / "metadata.jsonl", rows)
    weights = inputs.base_identity(base, FileHashes())
    recipe = EncodeRecipe(wildcards={"base": NAME}, encode=Encode(), base=base, base_identity=weights, threads=threads)
    encode_dataset(recipe, folder)
    return folder


def start(settings: Train, base: Base, folder: Path) -> tuple[Run, float]:
    """A run that has done its first steps and replays its passes if it can, and the seconds to its first step."""
    # accelerate shares one state, with its precision, between all runs of a process: each keeps its own here
    before = dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state()
    began = time.perf_counter()
    try:
        run = prepare(settings, Flip(probability=0), base, load_examples(folder, NAME, settings.cache_latents))
    except Exception:
        AcceleratorState._shared_state.update(before)
        raise
    state = run.accelerator.state
    object.__setattr__(state, "__dict__", dict(vars(state)))
    optimizer_step(run, 0)
    synchronize()
    seconds = time.perf_counter() - began
    run.passes = passes_of(run, after=0)
    optimizer_step(run, 1)
    return run, seconds


def seconds_a_step(work: Callable[[int], Any], steps: int) -> float:
    """Mean seconds of one call of `work`, called `steps` times without waiting in between."""
    synchronize()
    began = time.perf_counter()
    for step in range(1, steps + 1):
        work(step)
    synchronize()
    return (time.perf_counter() - began) / steps


def alternate(works: list[Callable[[int], Any]], steps: int, repeats: int) -> list[list[float]]:
    """Seconds a step of each work, measured in turns, so that a machine that drifts drifts for all.

    Returns:
        One list of `repeats` times for each work.
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, found in zip(works, times, strict=True):
            found.append(seconds_a_step(work, steps))
    return times


def ratio(ones: list[float], others: list[float]) -> float:
    """Median of the ratios within the pairs."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def bare_step(run: Run) -> Callable[[int], Any]:
    """Forward, backward and optimizer step alone, on tensors that are ready: no loop can be faster.

    The passes are replayed where the loop replays them.
    """
    batch = draw_batch(run, 0, 0)
    noisy = run.objective.add_noise(batch.latents, batch.noise, batch.timesteps).to(run.model.dtype)
    parameters = [nn.Parameter(p.detach().clone()) for p in run.parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def step(number: int) -> None:
        if passed(run, batch) is None:
            with run.accelerator.autocast():
                predicted = run.model.predict(noisy, batch.timesteps, batch.conditioning)
            nn.functional.mse_loss(predicted.float(), batch.noise).backward()
        for own, theirs in zip(parameters, run.parameters, strict=True):
            own.grad, theirs.grad = theirs.grad, None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def uncached_extra(base: Base, folder: Path, batch_size: int) -> Callable[[int], Any]:
    """What a step costs more without caches: the VAE and the text encoders, as diffusers' scripts run them."""
    model = load_model(base)
    with Image.open(next((folder / "train").glob("*.png"))) as picture:
        side = picture.width
    images = torch.rand(batch_size, 3, side, side, generator=generator("pixels")) * 2 - 1
    texts = ["captain, picture number 0"] * batch_size

    def encode(number: int) -> None:
        model.encode_images(images)
        model.encode_prompts(texts)

    return encode


def flops_of(work: Callable[[int], Any]) -> int:
    """Floating-point operations of one call, matrix products and convolutions."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_OPERATORS) as counter:
        work(0)
    return int(counter.get_total_flops())


def matmul_rate(dtype: torch.dtype, repeats: int = 5) -> float:
    """Best FLOP/s of a large product in a type: the machine's ceiling."""
    side, device = (8192, "cuda") if CUDA else (2048, "cpu")
    one = torch.randn(side, side, generator=generator("matmul")).to(device, dtype)
    torch.mm(one, one)
    return 2 * side**3 / min(seconds_a_step(lambda number: torch.mm(one, one), 1) for _ in range(repeats))


def peak_bytes(settings: Train, base: Base, folder: Path, warm: Path) -> int:
    """Peak memory of a training, two steps, in a process of its own (RAM), or on the GPU.

    In a process of its own the embedded base trains first, on `warm`, so that what libraries take is not counted.
    """
    if CUDA:
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run, _ = start(settings, base, folder)
        torch.cuda.reset_peak_memory_stats()  # loading is over
        optimizer_step(run, 1)
        return torch.cuda.max_memory_allocated() - before
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.measure"])
    with context.Pool(1) as pool:
        return int(pool.apply(_peak_of_process, (settings.model_dump_json(), base.model_dump_json(), folder, warm)))


def _status(row: str) -> int:
    text = Path("/proc/self/status").read_text("ascii")
    return int(text.split(f"{row}:")[1].split()[0]) * 1024


def _give_back() -> None:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _peak_of_process(settings: str, base: str, folder: Path, warm: Path) -> int:
    torch.set_num_threads(1)
    train = Train.model_validate_json(settings)
    start(train.model_copy(update={"batch_size": 1}), TINY, warm)
    _give_back()
    baseline = _status("VmRSS")
    run, _ = start(train, Base.model_validate_json(base), folder)
    run.passes = passes_of(run, after=0)  # tracing counts
    _give_back()
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the high-water mark starts anew: loading is over
    optimizer_step(run, 2)
    return _status("VmHWM") - baseline
