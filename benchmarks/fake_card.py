"""A card that is not there: training's own code on tensors that have a device, a type and a shape, and no numbers.

On CUDA it draws, encodes, takes the loss, clips and steps; the backward pass runs on the CPU with the types that a GPU
would have, because autograd's engine asks CUDA for a stream. accelerate, which asks for a real device, is replaced by
the calls that it makes.
"""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sdlora import choices
from sdlora.config.params import Base, Flip
from sdlora.config.train import Train
from sdlora.memory.meter import Shapes, as_if_there_were_a_card
from sdlora.memory.prediction import _add_lora, _blank_tokens, _Shapes, put_into
from sdlora.models.loading import trained_base
from sdlora.stages.train import latents, texts
from sdlora.stages.train.dataset import BatchOrder, Example
from sdlora.stages.train.latents import LatentsOf
from sdlora.stages.train.loop import Run
from sdlora.tensors import DTYPES

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
TEXT = "captain, left"
_IN_THE_REGISTRY = {"cuda": 1, "meta": 14}  # c10::DeviceType
#: Operations that return a number, for which the CPU waits.
_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.nonzero.default)


@contextmanager
def on_a_card() -> Iterator[None]:
    """Where torch was built without CUDA, the meta device's guard does nothing in the place of CUDA's.

    torch does the same in builds with CUDA on machines without a card (`_ensureCUDADeviceGuardSet`).
    """
    with as_if_there_were_a_card(CUDA):
        if torch.version.cuda is not None:
            yield
            return
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
        guards = (ctypes.c_void_p * 15).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
        guards[_IN_THE_REGISTRY["cuda"]] = guards[_IN_THE_REGISTRY["meta"]]
        try:
            yield
        finally:
            guards[_IN_THE_REGISTRY["cuda"]] = None


class FakeAccelerate:
    """The calls that accelerate makes for one process on one GPU, but for the scaler, which asks for numbers."""

    scaler = None
    num_processes = 1

    def __init__(self, precision: str, device: torch.device) -> None:
        self._precision, self.device = precision, device

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._precision == "no" else torch.autocast(self.device.type, DTYPES[self._precision])

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def clip_grad_norm_(self, parameters: list[nn.Parameter], norm: float) -> None:
        nn.utils.clip_grad_norm_(parameters, norm)


class Reads(TorchFunctionMode):
    """Counts the numbers that are asked of tensors, for each of which the CPU waits for a card; on real tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += function in (Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__bool__, Tensor.cpu)
        return function(*args, **(kwargs or {}))


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, copies from the CPU to the card, and moments in which the CPU waits for the card."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.copies = self.waits = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = operation(*args, **(kwargs or {}))
        given, taken = ([x for x in tree_iter(some) if isinstance(x, Tensor)] for some in ((args, kwargs), made))
        here, there = ({x.device.type for x in some} for some in (given, taken))
        self.operations += "cuda" in here | there
        # a number beside the card's tensors is part of a kernel's call, and is not copied
        numbers = all(x.dim() == 0 for x in given if x.device.type == "cpu") and "cuda" in here
        self.copies += "cpu" in here and "cuda" in there and not numbers
        self.waits += "cuda" in here and ("cpu" in there or operation in _READS)
        return made


def weights_of(base: Base, train: Train) -> torch.dtype:
    """Type of the frozen weights on a GPU."""
    return DTYPES[trained_base(base, train, CUDA).dtype]


def shapes_of(train: Train, base: Base, device: torch.device) -> _Shapes:
    """A base on fake tensors of the types that a GPU would have."""
    shapes = _Shapes(trained_base(base, train, CUDA), device)
    shapes.mode = Shapes(allow_non_fake_inputs=True)  # pictures, and the scheduler's tables
    shapes.model.dtype = weights_of(base, train)
    for part in shapes.model.parts():
        put_into(part, shapes.model.dtype)
    # a tokenizer's numbers are real, and cannot be sent to a card that is not there
    shapes.model.tokenize = lambda prompts: _blank_tokens(shapes.model, len(prompts))  # type: ignore[method-assign]
    order = BatchOrder.of([Example("p", (torch.zeros(1, 1, 1),), (), (TEXT,))], train.seed, 1)
    for step in range(2):
        order.draws(step)  # remembered: drawing the order needs numbers
    return shapes


def cached_example(shapes: _Shapes, side_px: int, mask: bool) -> Example:
    """A picture whose latents are there; with or without a mask."""
    pipeline = shapes.model.pipeline
    shape = (pipeline.vae.config.latent_channels, *(side_px // pipeline.vae_scale_factor,) * 2)
    numbers = (torch.zeros(shape),)
    return Example("p", numbers, numbers, (TEXT,), mask=(torch.ones(1, *shape[1:]) if mask else None,))


def run_of(train: Train, shapes: _Shapes, shown: Example, latents_of: LatentsOf = latents.cached) -> Run:
    """The run that `prepare` makes, of fake tensors, whose LoRA was added by `with_lora`."""
    model = shapes.model
    parameters = [p for part in model.parts() for p in part.parameters() if p.requires_grad]
    accelerate: Any = FakeAccelerate(train.precision(model.base.dtype), shapes.device)
    if train.learns_text:
        conditioning_of = texts.learning(model, accelerate.autocast, None)
    else:
        conditioning_of = texts.cached(model, [TEXT])
    optimizer = choices.pick(choices.OPTIMIZERS, train.optimizer)([{"params": parameters, "lr": 1e-3}], train)
    return Run(
        settings=train, flip=Flip(), model=model, examples=[shown], order=BatchOrder.of([shown], train.seed, 1),
        latents_of=latents_of, conditioning_of=conditioning_of, parameters=parameters, optimizer=optimizer,
        lr_schedule=choices.pick(choices.LR_SCHEDULES, "constant")(optimizer, train), accelerator=accelerate,
        objective=model.objective(train),
        average=[p.detach().clone() for p in parameters] if train.ema is not None else None,
    )  # fmt: skip


def with_lora(train: Train, shapes: _Shapes) -> None:
    """Add the training's LoRA, and put everything on the device, as far as torch can tell."""
    _add_lora(shapes.model, train)
    shapes.materialize()


def with_prior(run: Run, shown: Example) -> None:
    """Let a run learn a picture of the class along."""
    run.prior = replace(
        run, examples=[shown], order=BatchOrder.of([shown], run.settings.seed, 1), latents_of=latents.cached
    )
