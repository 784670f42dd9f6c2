"""Replayed passes give the bytes that autograd gives, and stand aside where a batch's passes may change."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import TINY
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from training import examples, settings

from sdlora.config.params import Base, Flip
from sdlora.config.train import Ema, Pivotal, Prior, TextEncoder
from sdlora.cpu.replay import Replay, called_directly, without_identities
from sdlora.stages.train.dataset import Example
from sdlora.stages.train.loop import Run, optimizer_step, passes_of
from sdlora.stages.train.run import prepare

EQUAL: list[dict[str, object]] = [
    {}, {"batch_size": 2, "accumulation": 2, "mixed_precision": "bf16"},
    {"loss": "huber", "weighting": "min_snr", "noise": ("offset",), "input_perturbation": 0.1, "caption_dropout": 0.5},
    {"lora_type": "dora", "optimizer": "adamw8bit"}, {"targets": "all", "max_norm": 0.1, "ema": Ema()},
]  # fmt: skip


def trained(train: dict[str, object], shown: list[Example], base: Base, replayed: bool) -> tuple[Run, list[Tensor]]:
    """A run after five steps, and its losses and parameters."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    run = prepare(settings(**train), Flip(), base, shown, trigger="captain")
    run.passes = passes_of(run, 1) if replayed else None
    losses = [optimizer_step(run, step) for step in range(5)]
    if replayed:
        assert isinstance(run.passes, Replay) and run.passes._traced
    return run, [*losses, *(p.detach() for p in run.parameters)]


def assert_equal(train: dict[str, object], shown: list[Example], base: Base) -> Run:
    """Train with and without; the run that replays."""
    (run, ours), (_, autograds) = (trained(train, shown, base, replayed) for replayed in (True, False))
    assert len(ours) == len(autograds)
    assert all(torch.equal(one, other) for one, other in zip(ours, autograds, strict=True))
    return run


@pytest.mark.slow
@pytest.mark.parametrize("train", EQUAL, ids=str)
def test_replayed_steps_give_the_same_bytes(train: dict[str, object], small_sd: Base) -> None:
    assert_equal(train, examples(), small_sd if train else TINY)


def _half(sides: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(side[..., :8].contiguous() for side in sides)


@pytest.mark.slow
def test_every_shape_has_its_own_list_and_masks_are_part_of_the_batch(small_sd: Base) -> None:
    masked = [Example(e.id, e.mean, e.std, e.text, mask=(torch.ones(1, 16, 8),) * 2) for e in examples(1)]
    wide = [Example(f"w{e.id}", _half(e.mean), _half(e.std), e.text, mask=e.mask) for e in masked]
    run = assert_equal({}, [*examples(1), *wide], small_sd)
    assert isinstance(run.passes, Replay) and len(run.passes._traced) == 2


@pytest.mark.slow
def test_a_shape_is_traced_only_when_it_came_often(small_sd: Base) -> None:
    run = prepare(settings(), Flip(), small_sd, examples())
    run.passes = passes_of(run, 2)
    assert isinstance(run.passes, Replay)
    for step in range(3):
        assert not run.passes._traced
        optimizer_step(run, step)
    assert run.passes._traced


@pytest.mark.slow
def test_a_run_is_let_go_without_the_garbage_collector(small_sd: Base) -> None:
    gc.disable()
    try:
        run = prepare(settings(), Flip(), small_sd, examples(1))
        optimizer_step(run, 0)
        run.passes = passes_of(run, 0)
        optimizer_step(run, 1)
        gone = weakref.ref(run)
        del run
        assert gone() is None, "its cached files would stay open"
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "train",
    [
        {"dropout": 0.1}, {"lora_type": "lokr"}, {"gradient_checkpointing": True},
        {"text_encoder": TextEncoder(rank=2)}, {"pivotal": Pivotal(vectors=1)},
        {"prior": Prior(prompt="toon head", pictures=1)},
    ],
    ids=str,
)  # fmt: skip
def test_autograd_where_passes_change(train: dict[str, object], small_sd: Base) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    run = prepare(settings(**train), Flip(), small_sd, examples(), identity="sha256:tiny", trigger="captain")
    assert run.passes is None


def doubled_later(x: Tensor) -> tuple[Tensor, Tensor]:
    """The quotient must stay a copy: x's own memory is written to after it."""
    y = x + 1
    kept = y / 1.0
    y.mul_(2)
    return kept, y


def copy_is_written(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x + 1
    copy = y / 1.0
    copy.view(-1).add_(5)
    return y, copy


def nothing_is_written_later(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x + 1
    y.mul_(3)
    return y / 1.0, y.exp().mul_(1.0)


@pytest.mark.parametrize(
    ("work", "left_out"), [(doubled_later, 0), (copy_is_written, 0), (nothing_is_written_later, 2)]
)
def test_identities_are_left_out_unless_memory_would_be_shared(work: Callable[..., object], left_out: int) -> None:
    x = torch.arange(6.0).view(2, 3)
    traced = make_fx(work)(x)
    before = len(traced.graph.nodes)
    shorter = without_identities(traced)
    assert before - len(shorter.graph.nodes) == left_out
    for ours, theirs in zip(shorter(x), work(x), strict=True):  # type: ignore[arg-type, var-annotated]
        assert torch.equal(ours, theirs)


def frequent(x: Tensor) -> tuple[Tensor, ...]:
    y = (x.unsqueeze(0).transpose(1, 2).expand(2, 3, 2).clone(memory_format=torch.contiguous_format) * 2 + 1).view(4, 3)
    y.addmm_(y[:, :2], x, alpha=0.5).mul_(0.9)
    norms = nn.functional.layer_norm(y, (3,)), nn.functional.group_norm(y.view(1, 4, 3), 2)
    return torch.cat([nn.functional.silu(y), nn.functional.gelu(y)]).permute(1, 0), y.t() @ y, *norms


def test_frequent_operations_are_called_directly() -> None:
    x = torch.arange(6.0).view(2, 3)
    traced = make_fx(frequent)(x)
    slow = {node.target for node in traced.graph.nodes}
    faster = called_directly(traced)
    left = {str(node.target) for node in faster.graph.nodes if node.target in slow and node.op == "call_function"}
    assert left <= {"aten.slice.Tensor", "<built-in function getitem>"}
    for ours, theirs in zip(faster(x), frequent(x), strict=True):
        assert torch.equal(ours, theirs)
