"""Optimizers: how often a step waits for the device, and Prodigy against its authors' own."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from benchmarks.fake_card import CPU, CUDA, Reads, on_a_card
from operations import Operations
from prodigyopt import Prodigy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from training import settings

from sdlora import choices
from sdlora.config.train import Train
from sdlora.stages.train.optimizers import bitsandbytes_optim
from sdlora.stages.train.prodigy import ForeachProdigy

SHAPES = ((4, 6), (8, 4), (3,), (2, 3, 1, 1), (5000,))


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Some random, some zero, as A and B of a LoRA are."""
    source = torch.Generator().manual_seed(0)
    return [
        nn.Parameter((torch.randn(shape, generator=source) * (number % 2)).to(dtype))
        for number, shape in enumerate(SHAPES)
    ]


def stepped(optimizer: Optimizer, some: list[nn.Parameter], steps: int, rate: Callable[[int], float] | None) -> None:
    source = torch.Generator().manual_seed(1)
    for step in range(steps):
        for group in optimizer.param_groups if rate else ():
            group["lr"] = rate(step)  # type: ignore[misc]
        for parameter in some:
            noise = torch.randn(parameter.shape, generator=source).to(parameter.dtype)
            parameter.grad = parameter.detach() - 3 + 0.1 * noise
        if step % 3 == 0:
            some[2].grad = None
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "reads"), [("adamw", 0), ("adamw8bit", 0), ("lion", 0), ("prodigy", 1), ("schedulefree_adamw", 0)]
)
def test_how_often_a_step_waits(name: str, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Tensor] = []
    monkeypatch.setattr(bitsandbytes_optim().optimizer, "sync_gpu", waits.append)
    some = parameters()
    stepped(bitsandbytes_optim().AdamW8bit(some), some, 1, None)
    assert len(waits) == len(SHAPES) - 1, "bitsandbytes by itself waits for each"
    waits.clear()
    some = parameters()
    train = settings(optimizer=name, learning_rate=1.0)
    optimizer = choices.pick(choices.OPTIMIZERS, name)([{"params": some, "lr": 1.0}], train)
    stepped(optimizer, some, 2, None)  # state is made
    with Reads() as found:
        stepped(optimizer, some, 3, None)
    assert (found.count, len(waits)) == (3 * reads, 0)


def test_adamw_is_one_kernel_on_a_card_and_on_a_cpu() -> None:
    for device, mode in ((CPU, nullcontext()), (CUDA, FakeTensorMode())):
        with on_a_card(), mode:
            some = [nn.Parameter(torch.zeros(shape, device=device)) for shape in SHAPES]
            optimizer = choices.pick(choices.OPTIMIZERS, "adamw")([{"params": some, "lr": 1.0}], settings())
            for _ in range(2):  # the first makes the state
                for parameter in some:
                    parameter.grad = torch.zeros_like(parameter)
                with Operations() as kernels:
                    optimizer.step()
        assert kernels.seen["aten._fused_adamw_.default"] == 1
        work = {name for name in kernels.seen if not name.startswith(("profiler.", "prim."))}
        assert work == {"aten._fused_adamw_.default", "aten._foreach_add_.Scalar"}, "and what counts steps"


def test_the_fused_kernel_is_adamw_to_rounding() -> None:
    found = []
    for fused in (True, False):
        some = parameters(torch.float64)
        optimizer = choices.pick(choices.OPTIMIZERS, "adamw")([{"params": some, "lr": 1e-2}], settings())
        assert optimizer.param_groups[0]["fused"] is True
        stepped(optimizer if fused else torch.optim.AdamW(some, lr=1e-2, foreach=False), some, 30, None)
        found.append(some)
    assert all(torch.allclose(*pair, rtol=1e-12, atol=1e-14) for pair in zip(*found, strict=True))


def test_eight_bits_are_taken_only_where_a_version_says_so() -> None:
    assert Train().optimizer == "adamw"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.01, "use_bias_correction": True, "d_coef": 2.0},
        {"betas": (0.0, 0.99), "d0": 1e-4},
        {"beta3": 0.9, "weight_decay": 0.1, "growth_rate": 1.02},
    ],
)
def test_prodigy_is_its_authors_to_the_last_bit(dtype: torch.dtype, options: dict[str, Any]) -> None:
    made = []
    for kind in (Prodigy, ForeachProdigy):
        some = parameters(dtype)
        groups = [{"params": some[:3]}, {"params": some[3:]}]
        optimizer = kind(groups, lr=1.0, safeguard_warmup=True, **options)
        stepped(optimizer, some, 40, lambda step: 0.0 if step == 20 else 1 - step / 80)
        made.append((some, optimizer))
    (theirs, reference), (ours, found) = made
    assert all(torch.equal(*pair) for pair in zip(theirs, ours, strict=True))
    for one, other in zip(reference.param_groups, found.param_groups, strict=True):
        assert {**one, "params": 0} == {**other, "params": 0}
    for one, other in zip(theirs, ours, strict=True):
        expected, state = reference.state[one], found.state[other]
        assert expected.keys() == state.keys() and expected["step"] == state["step"]
        assert all(torch.equal(expected[name], state[name]) for name in expected if name != "step")
    assert found.param_groups[0]["d"] > 2 * found.param_groups[0]["d0"]
    again = Prodigy([{"params": parameters(dtype)[:3]}, {"params": parameters(dtype)[3:]}])
    again.load_state_dict(found.state_dict())


def test_prodigy_takes_one_rate() -> None:
    some = parameters()
    optimizer = ForeachProdigy([{"params": some[:2], "lr": 1.0}, {"params": some[2:], "lr": 0.5}])
    with pytest.raises(ValueError, match="one learning rate for all parameters"):
        stepped(optimizer, some, 1, None)


@pytest.mark.parametrize("schedule", [name for name in choices.LR_SCHEDULES if name != "staged"])
@pytest.mark.parametrize("name", [name for name in choices.OPTIMIZERS if name != "schedulefree_adamw"])
def test_every_optimizer_takes_every_schedule(name: str, schedule: str) -> None:
    some = parameters()
    train = settings(optimizer=name, lr_schedule=schedule, steps=4, learning_rate=1e-3)
    optimizer = choices.pick(choices.OPTIMIZERS, name)([{"params": some, "lr": 1e-3}], train)
    found = choices.pick(choices.LR_SCHEDULES, schedule)(optimizer, train)
    assert 0 <= found.get_last_lr()[0] <= 1e-3
