"""Optimizers: how often a step waits for the device, and Prodigy against its authors' own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from prodigyopt import Prodigy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from training import settings

from sdlora import choices
from sdlora.stages.train.optimizers import bitsandbytes_optim
from sdlora.stages.train.prodigy import ForeachProdigy

SHAPES = ((4, 6), (8, 4), (3,), (2, 3, 1, 1), (5000,))


class Reads(TorchFunctionMode):
    """Counts the numbers that are asked of tensors, each of which waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += function in (Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__bool__, Tensor.cpu)
        return function(*args, **(kwargs or {}))


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
