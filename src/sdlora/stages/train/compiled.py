"""The blocks that a denoiser repeats, compiled: fewer, larger kernels, after a wait that long trainings earn back."""

import time
from collections.abc import Callable

from sdlora.errors import ResourceError
from sdlora.stages.train.batch import draw_batch
from sdlora.stages.train.loop import Run, backward


def compile_blocks(run: Run, backend: str = "inductor") -> None:
    """Compile the repeated blocks of a run's denoiser, and say after how many passes that pays.

    Passes of the first batch are timed before and after; their gradients are dropped, so nothing else changes. Each
    shape of a batch is compiled by itself, at its first use: shapes that were generalised would depend on the order in
    which they come, and a training that is resumed must not.

    Args:
        run: With its LoRA, nothing trained yet.
        backend: torch's compiler.

    Raises:
        ResourceError: If the compiler fails, as where the machine has no C++ compiler.
    """
    from torch._dynamo import config as dynamo
    from torch._dynamo.exc import TorchDynamoException

    plain = _seconds(run)
    dynamo.recompile_limit = max(dynamo.recompile_limit, 4 * len(run.order.streams))
    dynamo.fail_on_recompile_limit_hit = True  # and not plain passes in silence
    run.model.denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)  # type: ignore[operator]
    try:
        waited = _timed(lambda: _pass(run))
    except TorchDynamoException as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise ResourceError(f"train.compile: blocks failed ({said}); set compile: none") from error
    print(told(waited, plain, _seconds(run)), flush=True)


def told(waited: float, plain: float, compiled: float) -> str:
    """When compiling pays: what was waited, and a pass before and after, seconds."""
    before, after = plain * 1e3, compiled * 1e3
    said = f"train: blocks compiled in {waited:.0f} s; a pass takes {after:.1f} ms in place of {before:.1f} ms"
    if compiled >= plain:
        return f"{said}: compile: blocks does not pay here"
    return f"{said}: that pays after {round(waited / (plain - compiled))} passes of a shape"


def _seconds(run: Run) -> float:
    """The fastest of three passes, after one that does what only a first one does."""
    return min(_timed(lambda: _pass(run)) for _ in range(4))


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _pass(run: Run) -> None:
    backward(run, draw_batch(run, 0, 0)).item()  # read: a GPU is waited for
    run.optimizer.zero_grad(set_to_none=True)
