"""Forward and backward passes as a list of operations, run again without modules and autograd around them.

In a step of the embedded base a third of the time is Python's and autograd's, not arithmetic. So once batches
of a shape have come often, one is traced down to its operations (`make_fx`), gradients included, and those
that follow run the list, without what multiplies by one and by torch's shortest calls. Order and numbers stay
the same, and so do the bytes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

#: Tracing takes as long as some fifty steps: a shape that came a hundred times is worth it, whatever is to come.
TRACED_AFTER = 100
_Name = tuple[str, str | None]  # of a tensor in a batch: its field, and its key where that is a dictionary
_ATEN = torch.ops.aten
_TIMES = (_ATEN.div.Tensor, _ATEN.mul.Tensor, _ATEN.mul_.Tensor)

#: Operations that come by the hundred, and the methods and functions that reach them in 60 % of the time.
_METHODS = {
    getattr(getattr(_ATEN, name), overload): name
    for name, overload in (
        ("view", "default"), ("permute", "default"), ("transpose", "int"), ("unsqueeze", "default"),
        ("expand", "default"), ("t", "default"), ("clone", "default"), ("addmm_", "default"), ("mul_", "Tensor"),
    )
}  # fmt: skip
_FUNCTIONS: dict[OpOverload, Callable[..., Any]] = {
    _ATEN.mm.default: torch.mm, _ATEN.add.Tensor: torch.add, _ATEN.mul.Tensor: torch.mul, _ATEN.cat.default: torch.cat,
    _ATEN.native_group_norm.default: torch.native_group_norm, _ATEN.native_layer_norm.default: torch.native_layer_norm,
    _ATEN.silu.default: torch.nn.functional.silu, _ATEN.gelu.default: torch.nn.functional.gelu,
}  # fmt: skip


class Replay:
    """A batch's loss and gradients, by replaying what a batch of the same shape did.

    Args:
        parameters: Those whose gradients are wanted, changed only in place.
        after: How many batches of a shape are left to autograd first.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], after: int) -> None:
        self._parameters, self._after = list(parameters), after
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._traced: dict[tuple[Any, ...], fx.GraphModule] = {}

    def run(self, batch: Any, loss_of: Callable[[Any], Tensor]) -> Tensor | None:
        """Add a batch's gradients to the parameters' and return its loss; None where autograd has to do it.

        Args:
            batch: What the passes see.
            loss_of: A batch's loss, always the same: a function of the batch and the parameters alone,
                without randomness and without branches on values.
        """
        named = _tensors(batch)
        key = tuple((name, x.shape, x.stride(), x.dtype) for name, x in named.items())
        if key not in self._traced:
            self._seen[key] += 1
            if self._seen[key] <= self._after:
                return None
            self._traced[key] = self._trace(type(batch), named, loss_of)
        with torch.no_grad():
            loss, *gradients = self._traced[key](*named.values())
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                if parameter.grad is None:  # laid out as autograd would
                    parameter.grad = gradient if gradient.stride() == parameter.stride() else gradient.contiguous()
                else:
                    parameter.grad += gradient
        return loss  # type: ignore[no-any-return]

    def _trace(self, kind: type, named: dict[_Name, Tensor], loss_of: Callable[[Any], Tensor]) -> fx.GraphModule:
        def passes(*values: Tensor) -> tuple[Tensor, ...]:
            loss = loss_of(_batch(kind, dict(zip(named, values, strict=True))))
            return loss.detach(), *torch.autograd.grad(loss, self._parameters)

        return called_directly(without_identities(make_fx(passes)(*named.values())))


def _tensors(batch: Any) -> dict[_Name, Tensor]:
    """Every tensor of a batch, in the order of its fields."""
    named: dict[_Name, Tensor] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, dict):
            named |= {(field.name, name): tensor for name, tensor in value.items()}
        elif value is not None:
            named[field.name, None] = value
    return named


def _batch(kind: type, named: dict[_Name, Tensor]) -> Any:
    """A batch of such tensors; fields without any have their defaults."""
    values: dict[str, Any] = {}
    for (field, name), tensor in named.items():
        if name is None:
            values[field] = tensor
        else:
            values.setdefault(field, {})[name] = tensor
    return kind(**values)


def without_identities(traced: fx.GraphModule) -> fx.GraphModule:
    """Leave out `detach`, and multiplications and divisions by one, wherever what they copy is not written to later."""
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    roots: dict[fx.Node, fx.Node] = {}
    last_written: dict[fx.Node, int] = {}
    for node in order:
        writes, views = _aliasing(node)
        roots[node] = roots[_first(node)] if views else node
        if writes:
            last_written[roots[node]] = order[node]
    for node in order:
        if not _is_identity(node):
            continue
        if _aliasing(node)[0] or all(last_written.get(roots[n], -1) < order[node] for n in (node, _first(node))):
            node.replace_all_uses_with(_first(node))
            traced.graph.erase_node(node)
    traced.recompile()
    return traced


def called_directly(traced: fx.GraphModule) -> fx.GraphModule:
    """Call the most frequent operations by torch's own methods and functions: the same work, found sooner."""
    for node in traced.graph.nodes:
        if node.target in _METHODS:
            node.op, node.target = "call_method", _METHODS[node.target]
        elif node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]
    traced.recompile()
    return traced


def _first(node: fx.Node) -> fx.Node:
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return first


def _aliasing(node: fx.Node) -> tuple[bool, bool]:
    """Whether an operation writes to its first argument, and whether its result shares memory with it."""
    if not isinstance(node.target, OpOverload):
        return False, node.op == "call_function" and isinstance(node.args[0], fx.Node)  # an item of several results
    info = node.target._schema.arguments[0].alias_info if node.target._schema.arguments else None
    return (info is not None and info.is_write, info is not None)


def _is_identity(node: fx.Node) -> bool:
    if node.target is torch.ops.aten.detach.default:
        return True
    if node.target not in _TIMES or isinstance(node.args[1], fx.Node) or node.args[1] != 1:
        return False
    kinds = [getattr(n.meta.get("tensor_meta"), "dtype", None) for n in (node, _first(node))]
    return kinds[0] is not None and kinds[0] == kinds[1]
