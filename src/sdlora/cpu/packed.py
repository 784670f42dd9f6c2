"""Frozen layers whose weights are kept in oneDNN's own order: faster on a CPU.

PyTorch gives every layer its weights in their plain order, and the library reorders them at every call.
In a network as small as the embedded base that takes longer than the arithmetic. A weight that is
never trained can be ordered once, for the forward pass and, transposed, for the gradient of the input;
under bf16 autocast it is also made bf16 once and not at every call. Results agree with PyTorch's own
layers to rounding.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

#: Packing keeps two more copies of the weights, so it is for small networks; in large ones reordering costs little.
LARGEST_BYTES = 256 * 2**20
_NO_POINTWISE: tuple[str, list[Any], str] = ("none", [], "")


class _Packed:
    """A layer's weights in oneDNN's order, and which plain weights they were made from."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, kind: torch.dtype, forward: Tensor, backward: Tensor) -> None:
        self._source = _identity(layer, kind)
        self.forward, self.backward = forward, backward
        self.bias = None if layer.bias is None else layer.bias.detach().to(kind)

    def is_of(self, layer: nn.Linear | nn.Conv2d, kind: torch.dtype) -> bool:
        return self._source == _identity(layer, kind)


def _packed(
    layer: nn.Linear | nn.Conv2d, kind: torch.dtype, order: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> _Packed:
    """What a layer keeps, ordered anew if it was made from other weights; `order` gives both passes' weights."""
    found: _Packed | None = layer.__dict__.get("_packed")
    if found is None or not found.is_of(layer, kind):
        found = _Packed(layer, kind, *order(_as(kind, layer.weight)))
        layer.__dict__["_packed"] = found
    return found


def _identity(layer: nn.Linear | nn.Conv2d, kind: torch.dtype) -> tuple[object, ...]:
    return kind, *(_version(tensor) for tensor in (layer.weight, layer.bias) if tensor is not None)


def _version(weight: Tensor) -> tuple[int, int]:
    if isinstance(weight, FakeTensor):
        return id(weight), 0
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _kind(layer: nn.Linear | nn.Conv2d, x: Tensor) -> torch.dtype | None:
    """What a frozen fp32 layer computes in on a CPU: fp32, or autocast's bf16; None where PyTorch has to do it.

    Tensors may also be the preflight's, which have no values.
    """
    if type(x) not in (Tensor, FakeTensor) or x.device.type != "cpu":
        return None
    if layer.weight.dtype != torch.float32 or layer.weight.requires_grad:
        return None
    if not torch.is_autocast_enabled("cpu"):
        return torch.float32 if x.dtype == torch.float32 else None
    if torch.get_autocast_dtype("cpu") != torch.bfloat16 or x.dtype not in (torch.float32, torch.bfloat16):
        return None
    return torch.bfloat16 if packs_bf16() else None


@cache
def packs_bf16() -> bool:
    """Whether this CPU has what oneDNN needs to order bf16 weights, AVX-512 for example; PyTorch's own need none."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "PackedLinear", kind: torch.dtype) -> Tensor:
        ctx.packed, ctx.of_x = layer.packed(kind), x.dtype
        return _linear(x.to(kind), ctx.packed.forward, ctx.packed.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _linear(gradient, ctx.packed.backward, None).to(ctx.of_x), None, None


def _order_linear(weight: Tensor) -> Tensor:
    if isinstance(weight, FakeTensor):  # has no values to order
        return weight
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return result


def _as(kind: torch.dtype, weight: Tensor) -> Tensor:
    # a tensor without values stays itself, so that the preflight does not count a copy that packed_bytes counts
    return weight.detach() if isinstance(weight, FakeTensor) else weight.detach().to(kind)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *_NO_POINTWISE)
    return result


class PackedLinear(nn.Linear):
    """`nn.Linear` with frozen weights."""

    def packed(self, kind: torch.dtype) -> _Packed:
        return _packed(self, kind, lambda plain: (_order_linear(plain), _order_linear(plain.T)))

    def forward(self, input: Tensor) -> Tensor:
        kind = _kind(self, input)
        if kind is None:
            return super().forward(input)
        result: Tensor = _LinearFunction.apply(input, self, kind)  # type: ignore[no-untyped-call]
        return result


class _ConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "PackedConv2d", kind: torch.dtype) -> Tensor:
        ctx.packed, ctx.padding, ctx.of_x = layer.packed(x.shape, kind), layer.padding_of_gradient, x.dtype
        return _conv(x.to(kind), ctx.packed.forward, ctx.packed.bias, layer.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _conv(gradient, ctx.packed.backward, None, ctx.padding).to(ctx.of_x), None, None


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Any) -> Tensor:
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, (1, 1), (1, 1), 1, *_NO_POINTWISE
    )
    return result


class PackedConv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1 with frozen weights: its gradient is a convolution with the kernel turned round."""

    @property
    def padding_of_gradient(self) -> tuple[int, int]:
        return self.kernel_size[0] - 1 - int(self.padding[0]), self.kernel_size[1] - 1 - int(self.padding[1])

    def packed(self, shape: torch.Size, kind: torch.dtype) -> _Packed:
        def order(plain: Tensor) -> tuple[Tensor, Tensor]:
            gradient = (shape[0], self.out_channels, *shape[2:])
            forward = _order(plain, (int(self.padding[0]), int(self.padding[1])), shape)
            return forward, _order(plain.transpose(0, 1), self.padding_of_gradient, gradient, turned=True)

        return _packed(self, kind, order)

    def forward(self, input: Tensor) -> Tensor:
        kind = _kind(self, input)
        if kind is None:
            return super().forward(input)
        result: Tensor = _ConvFunction.apply(input, self, kind)  # type: ignore[no-untyped-call]
        return result


def _order(weight: Tensor, padding: tuple[int, int], shape: Sequence[int], turned: bool = False) -> Tensor:
    if isinstance(weight, FakeTensor):
        return weight
    plain = (weight.flip(2, 3) if turned else weight).contiguous().to_mkldnn()
    result: Tensor = torch.ops.aten.mkldnn_reorder_conv2d_weight(plain, padding, (1, 1), (1, 1), 1, tuple(shape))
    return result


class _LoraFunction(torch.autograd.Function):
    """y = W x + b + scale B A x as one node: peft's own is six, and each costs more than such small products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: Tensor, up: Tensor, scale: float, base: PackedLinear, kind: torch.dtype
    ) -> Tensor:
        ctx.packed, ctx.scale, ctx.of_x, ctx.of_lora = base.packed(kind), scale, x.dtype, down.dtype
        x, down, up = x.to(kind), down.to(kind), up.to(kind)
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ down.T
        result = _linear(x, ctx.packed.forward, ctx.packed.bias)
        result.view(-1, result.shape[-1]).addmm_(inner, up.T, alpha=scale)
        ctx.save_for_backward(rows, inner, down, up)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None, None]:
        rows, inner, down, up = ctx.saved_tensors
        gradient = gradient.contiguous()
        outer = gradient.view(-1, gradient.shape[-1])
        of_inner = (outer @ up).mul_(ctx.scale)
        of_down, of_up = (of_inner.T @ rows).to(ctx.of_lora), (outer.T @ inner).to(ctx.of_lora).mul_(ctx.scale)
        if not ctx.needs_input_grad[0]:
            return None, of_down, of_up, None, None, None
        of_x = _linear(gradient, ctx.packed.backward, None)
        of_x.view(-1, of_x.shape[-1]).addmm_(of_inner, down)
        return of_x.to(ctx.of_x), of_down, of_up, None, None, None


class PackedLora(LoraLinear):  # type: ignore[misc]
    """peft's LoRA on a packed layer; dropout, DoRA, several adapters and the like go peft's own way."""

    def _plain_adapter(self) -> str | None:
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or self.disable_adapters or self.merged:
            return None
        name = active[0]
        plain = name not in self.lora_variant and isinstance(self.lora_dropout[name], nn.Identity)
        return name if plain and not self.lora_bias[name] else None

    def _pefts(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = super().forward(x, *args, **kwargs)
        return result

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name, base = self._plain_adapter(), self.base_layer
        if args or kwargs or name is None or not isinstance(base, PackedLinear):
            return self._pefts(x, *args, **kwargs)
        kind, down, up = _kind(base, x), self.lora_A[name].weight, self.lora_B[name].weight
        if kind is None or not down.dtype == up.dtype == torch.float32:
            return self._pefts(x)
        result: Tensor = _LoraFunction.apply(x, down, up, self.scaling[name], base, kind)  # type: ignore[no-untyped-call]
        return result


def _packable(layer: nn.Conv2d) -> bool:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return False
    simple = layer.stride == layer.dilation == (1, 1) and layer.groups == 1
    return simple and all(size > padding for size, padding in zip(layer.kernel_size, layer.padding, strict=True))


def pack(network: nn.Module) -> None:
    """Have a small frozen network's linear layers and convolutions keep packed weights.

    The layers stay `nn.Linear` and `nn.Conv2d` with the same parameters. A layer whose weights are trained, or
    that is given anything but fp32 on a CPU (or bf16 by autocast, where the CPU has it), works as before. Weights
    that are replaced or changed in place are packed again; changes through `.data`, which PyTorch does not count,
    are seen only if they replace the tensor.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    if sum(p.nbytes for p in network.parameters()) > LARGEST_BYTES:
        return
    for layer in network.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = PackedLinear
        elif type(layer) is nn.Conv2d and _packable(layer):
            layer.__class__ = PackedConv2d


def is_packed(network: nn.Module) -> bool:
    """Whether `pack` found the network small enough."""
    return any(isinstance(layer, PackedLinear | PackedConv2d) for layer in network.modules())


def pack_lora(network: nn.Module) -> None:
    """The same for the LoRA that was added to a packed network."""
    for layer in network.modules():
        if type(layer) is LoraLinear and isinstance(layer.base_layer, PackedLinear):
            layer.__class__ = PackedLora


def packed_bytes(network: nn.Module, kind: torch.dtype = torch.float32) -> int:
    """What the packed copies of a network's weights take, once every layer was used in a type."""
    if kind == torch.bfloat16 and not packs_bf16():
        return 0
    layers = [layer for layer in network.modules() if isinstance(layer, PackedLinear | PackedConv2d)]
    return sum(2 * layer.weight.numel() * kind.itemsize for layer in layers)
