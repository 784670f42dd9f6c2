"""Counting memory: of computations that never run, of optimizers, and what the machine has free.

Fake tensors have a shape, a type and a device but no numbers. A step on them takes a second or two,
costs nothing, and makes and drops the very tensors that the real one makes and drops.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sdlora.memory import limits

# A tensor's value asked for. Fake tensors have none, so a draw such as peft's `torch.rand(1) > module_dropout` (LoHa,
# LoKr) is taken as won: the layer takes part, which is the pass that needs the most memory.
_DECISIONS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
_DEVICE = torch.ops.prim.device.default  # asked of fake tensors for every second operation


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors made inside it that are alive, and the most there were at once.

    What autograd saves, what a checkpointed block computes again, what autocast casts: all of it is
    made by an operation, and is seen here. Views share their storage and count once.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """Start at nothing; `known` tensors (weights) are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._known = [tensor.untyped_storage() for tensor in known]
        for storage in self._known:
            self._seen[id(storage)] = weakref.ref(storage)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if operation is _DEVICE and isinstance(args[0], FakeTensor) and not args[0].fake_mode.in_kernel_invocation:
            return args[0].fake_device
        if operation in _DECISIONS and isinstance(args[0], FakeTensor) and args[0].dtype == torch.bool:
            return True
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        seen = self._seen.get(key)
        if seen is not None and seen() is storage:
            return

        def gone(_: Any) -> None:
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


class Shapes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Fake tensors that look their operations up sooner: none is sparse, quantized or symbolic.

    Half of a prediction's time is the key by which torch's cache knows an operation; this one asks a tensor less.
    """

    def _prep_args_for_hash(self, result: list[object], args: Any, *others: Any) -> None:
        if isinstance(args, dict):
            super()._prep_args_for_hash(result, args, *others)
            return
        result.append(len(args))
        for arg in args:
            if type(arg) is FakeTensor and arg.fake_mode is self and arg.constant is None:
                result += (arg.dtype, arg.shape, arg.stride(), arg.storage_offset(), arg.requires_grad, arg.fake_device)
            elif arg is None or type(arg) in (int, float, bool, torch.dtype):
                result += (type(arg), arg)
            else:
                super()._prep_args_for_hash(result, (arg,), *others)


@contextmanager
def as_if_there_were_a_card(device: torch.device) -> Iterator[None]:
    """Let autocast work on fake CUDA tensors: it asks for a card that shapes do not need."""
    if device.type != "cuda" or torch.cuda.is_available():
        yield
        return
    places: list[tuple[Any, str, Any]] = [
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
    ]
    kept = [getattr(module, name) for module, name, _ in places]
    for module, name, answer in places:
        setattr(module, name, answer)
    try:
        yield
    finally:
        for (module, name, _), before in zip(places, kept, strict=True):
            setattr(module, name, before)


def become_fake(network: nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    """Replace a meta network's parameters and buffers by fake ones on a device."""

    def fake(tensor: Tensor) -> Tensor:
        return FakeTensor(mode, tensor.detach().to("meta"), device)

    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = fake(parameter).requires_grad_(parameter.requires_grad)
                made._is_param = True  # what nn.Parameter makes of a tensor's subclass, without its copy
                module._parameters[name] = made  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each storage once."""
    storages = {id(s): s for s in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def optimizer_cost(
    build: Callable[[list[nn.Parameter]], Optimizer], shapes: Iterable[torch.Size], zeros: Iterable[torch.Size] = ()
) -> tuple[int, int]:
    """Bytes an optimizer keeps for fp32 parameters of these shapes, and bytes its step needs for a moment.

    Measured, so that it holds for every optimizer: one real step on one parameter of each distinct
    shape. State that parameters share counts once.

    Args:
        build: Makes the optimizer from parameters.
        shapes: Of all parameters that start at anything but zero.
        zeros: Of those that start at zero: Prodigy keeps less of them.

    Returns:
        Kept and passing bytes.
    """
    counts = Counter([*((shape, 1.0) for shape in shapes), *((shape, 0.0) for shape in zeros)])
    parameters = [nn.Parameter(torch.full(shape, value)) for shape, value in counts]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer = build(parameters)
    optimizer.step()  # makes the state; the second step is like all that follow
    with Meter() as meter:
        optimizer.step()
    owners: Counter[int] = Counter()
    states = [_storages(optimizer.state[parameter]) for parameter in parameters]
    for state in states:
        owners.update(state.keys())
    shared: dict[int, int] = {}
    kept = 0
    for count, state in zip(counts.values(), states, strict=True):
        own = {key: size for key, size in state.items() if owners[key] == 1}
        shared |= {key: size for key, size in state.items() if owners[key] > 1}
        kept += count * sum(own.values())
    sampled = sum(parameter.numel() for parameter in parameters)
    total = sum(shape.numel() * count for (shape, _), count in counts.items())
    return kept + sum(shared.values()), round(meter.peak * total / max(sampled, 1))


def _storages(state: Mapping[str, Any]) -> dict[int, int]:
    found = [tensor.untyped_storage() for tensor in tree_iter(dict(state)) if isinstance(tensor, Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def free_bytes(device: torch.device) -> int:
    """Memory a process could take now: the GPU's, or RAM within the limits of its control groups."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free, left = int(psutil.virtual_memory().available), limits.left_bytes()
    return free if left is None else min(free, left)
