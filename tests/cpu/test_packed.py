"""Packed layers give what PyTorch's own give, to rounding, and stand aside wherever they do not apply."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import TINY
from peft import LoraConfig
from torch import Tensor, nn

from sdlora.config.train import Train
from sdlora.cpu import packed
from sdlora.lora.attach import attach_lora, detach_lora
from sdlora.lora.diffusers_file import write_lora
from sdlora.lora.names import FILE_NAME
from sdlora.lora.types import add_lora
from sdlora.models import load_model

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
HALF = {"rtol": 2e-2, "atol": 2e-2}  # bf16 has 8 bits


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def twins(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The layer, frozen, and a packed copy."""
    plain = nn.Sequential(layer).requires_grad_(False)
    other = copy.deepcopy(plain)
    packed.pack(other)
    return plain, other


def gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the input's gradient of a loss that weighs outputs differently."""
    x = x.clone().requires_grad_()
    y = network(x)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 40), (2, 9, 24)),
    "linear without bias": (lambda: nn.Linear(24, 40, bias=False), (7, 24)),
    "3x3": (lambda: nn.Conv2d(16, 24, 3, padding=1), (2, 16, 8, 6)),
    "1x1": (lambda: nn.Conv2d(16, 24, 1), (1, 16, 5, 5)),
    "without padding": (lambda: nn.Conv2d(8, 16, 3), (1, 8, 7, 9)),
    "oblong": (lambda: nn.Conv2d(8, 16, (1, 3), padding=(0, 2), bias=False), (1, 8, 7, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_pytorchs(name: str) -> None:
    make, shape = LAYERS[name]
    plain, other = twins(make())
    assert type(other[0]) in (packed.PackedLinear, packed.PackedConv2d)  # type: ignore[index]
    x = torch.randn(shape)
    for ours, theirs in zip(gradient(other, x), gradient(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    larger = torch.randn(3, *shape[1:])  # packed for one shape, right for others
    torch.testing.assert_close(other(larger), plain(larger), **CLOSE)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 8, 1, padding=1),
    ],
)  # fmt: skip
def test_other_convolutions_stay_as_they_are(layer: nn.Module) -> None:
    _, other = twins(layer)
    assert type(other[0]) is nn.Conv2d  # type: ignore[index]


@pytest.mark.parametrize("name", ["linear", "3x3"])
def test_changed_weights_are_packed_again(name: str) -> None:
    make, shape = LAYERS[name]
    plain, other = twins(make())
    x = torch.randn(shape)
    other(x)
    with torch.no_grad():
        for network in (plain, other):
            network[0].weight.mul_(2)  # type: ignore[index]
    torch.testing.assert_close(other(x), plain(x), **CLOSE)
    for network in (plain, other):
        layer = network[0]  # type: ignore[index]
        layer.weight.data = layer.weight.data + 1
    torch.testing.assert_close(other(x), plain(x), **CLOSE)


def test_trained_weights_get_their_gradient() -> None:
    _, other = twins(nn.Linear(4, 4))
    other.requires_grad_(True)
    other(torch.randn(2, 4)).sum().backward()
    assert other[0].weight.grad is not None  # type: ignore[index]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast_gives_bf16_as_pytorch_does(name: str, given: torch.dtype) -> None:
    make, shape = LAYERS[name]
    plain, other = twins(make())
    x = torch.randn(shape).to(given)
    with torch.autocast("cpu", torch.bfloat16):
        kind = torch.bfloat16 if packed.packs_bf16() else None
        assert packed._kind(other[0], x) == kind  # type: ignore[index, arg-type]
        (y, dx), (true_y, true_dx) = gradient(other, x), gradient(plain, x)
    assert (y.dtype, dx.dtype) == (true_y.dtype, true_dx.dtype) == (torch.bfloat16, given)
    torch.testing.assert_close(y, true_y, **HALF)
    torch.testing.assert_close(dx, true_dx, **HALF)
    torch.testing.assert_close(other(x.float()), plain(x.float()), **CLOSE)  # and fp32 again afterwards


def test_other_types_go_pytorchs_way() -> None:
    plain, other = twins(nn.Linear(8, 8))
    x = torch.randn(2, 8)
    assert torch.equal(other.double()(x.double()), plain.double()(x.double()))


def test_large_networks_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGEST_BYTES", 8 * 8 * 4)
    _, other = twins(nn.Linear(8, 8))  # its bias is too much
    assert type(other[0]) is nn.Linear  # type: ignore[index]


def loss_and_gradients(network: nn.Module) -> tuple[Tensor, list[Tensor]]:
    network.zero_grad()
    torch.manual_seed(1)
    y = network(torch.randn(3, 5, 12))
    y.square().mean().backward()
    return y.detach(), [p.grad for p in network.parameters() if p.grad is not None]


class Network(nn.Module):
    """Two layers; the first one's input needs no gradient, the second one's does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.two(self.one(x).tanh())
        return result


def with_lora(dropout: float = 0.0, dora: bool = False, pack: bool = False) -> nn.Module:
    from peft import inject_adapter_in_model

    torch.manual_seed(2)
    network: nn.Module = Network().requires_grad_(False)
    if pack:
        packed.pack(network)
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["one", "two"], init_lora_weights=False, lora_dropout=dropout, use_dora=dora
    )
    inject_adapter_in_model(config, network)
    packed.pack_lora(network)
    return network


@pytest.mark.parametrize(("dropout", "dora"), [(0.0, False), (0.5, False), (0.0, True)])
def test_a_lora_learns_what_pefts_learns(dropout: float, dora: bool) -> None:
    plain, other = with_lora(dropout, dora), with_lora(dropout, dora, pack=True)
    assert type(other.one) is packed.PackedLora and type(plain.one) is not packed.PackedLora
    (ours, our_gradients), (theirs, their_gradients) = loss_and_gradients(other), loss_and_gradients(plain)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert len(our_gradients) == len(their_gradients) == (6 if dora else 4)
    for one, another in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, another, **CLOSE)


def test_a_cpu_without_bf16_leaves_it_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN refuses to order bf16 weights without AVX-512 or the like."""
    monkeypatch.setattr(packed, "packs_bf16", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        ours, our_gradients = loss_and_gradients(with_lora(pack=True))
        theirs, their_gradients = loss_and_gradients(with_lora())
    assert torch.equal(ours, theirs)
    assert all(torch.equal(one, another) for one, another in zip(our_gradients, their_gradients, strict=True))
    network = with_lora(pack=True)
    assert packed.packed_bytes(network) > 0 == packed.packed_bytes(network, torch.bfloat16)


def test_a_lora_under_autocast_learns_what_pefts_learns() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        ours, our_gradients = loss_and_gradients(with_lora(pack=True))
        theirs, their_gradients = loss_and_gradients(with_lora())
    torch.testing.assert_close(ours, theirs, **HALF)
    for one, another in zip(our_gradients, their_gradients, strict=True):
        assert one.dtype == another.dtype == torch.float32
        assert (one - another).norm() < 0.02 * another.norm()


def test_a_lora_goes_one_node_only_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    apply = packed._LoraFunction.apply
    monkeypatch.setattr(packed._LoraFunction, "apply", lambda *words: (taken.append(1), apply(*words))[1])
    loss_and_gradients(with_lora(pack=True))
    assert len(taken) == 2
    for dropout, dora in ((0.5, False), (0.0, True)):
        loss_and_gradients(with_lora(dropout, dora, pack=True))
    network = with_lora(pack=True)
    for layer in (network.one, network.two):
        layer.enable_adapters(False)  # type: ignore[operator, union-attr]
    network(torch.randn(1, 2, 12))
    assert len(taken) == 2


@pytest.mark.slow
def test_the_embedded_base_is_packed_and_predicts_the_same(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    model = load_model(TINY, "cpu")
    add_lora(model, Train(rank=4, steps=1, checkpoint_every=1))
    kinds = {type(module) for module in model.denoiser.modules()}
    assert {packed.PackedConv2d, packed.PackedLinear, packed.PackedLora} <= kinds
    with torch.no_grad():
        for name, parameter in model.denoiser.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    noisy, steps = torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    context = torch.randn(2, 77, 192)
    write_lora(tmp_path, model, Train(rank=4, steps=1, checkpoint_every=1), None)
    theirs = UNet2DConditionModel.from_pretrained(Path(TINY.model) / "unet", torch_dtype=torch.float32)
    with torch.inference_mode():
        trained = model.predict(noisy, steps, {"context": context})
        fresh = load_model(TINY, "cpu")
        base = fresh.predict(noisy, steps, {"context": context})
        torch.testing.assert_close(base, theirs(noisy, steps, context).sample, **CLOSE)
        assert (trained - base).abs().max() > 0.01
        attach_lora(fresh.pipeline, tmp_path / FILE_NAME, 1.0)
        fresh.speed.lora_added(fresh.denoiser)
        torch.testing.assert_close(fresh.predict(noisy, steps, {"context": context}), trained, **CLOSE)
        detach_lora(fresh.pipeline)
        assert torch.equal(fresh.predict(noisy, steps, {"context": context}), base)
