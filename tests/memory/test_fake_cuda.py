"""Every family, precision and option on fake tensors: they have a device, a type and a shape, and need no card.

On CUDA the training's own code draws, encodes and takes the loss; the backward pass and the optimizer run on the CPU
with the types that a GPU would have, because autograd's engine asks CUDA for a stream. accelerate, which asks for a
real device, is replaced by the calls that it makes.
"""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY
from PIL import Image
from shapes import save_small_sd, save_small_sdxl
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sdlora import choices
from sdlora.config.params import Base, Flip, Sample
from sdlora.config.train import Ema, Pivotal, Prior, TextEncoder, Train
from sdlora.errors import ParamsError
from sdlora.memory import preflight
from sdlora.memory.meter import Meter, as_if_there_were_a_card
from sdlora.memory.prediction import _add_lora, _blank_tokens, _draw_peak, _Shapes, put_into
from sdlora.models.family import DTYPES, trained_base
from sdlora.stages.train import latents, texts
from sdlora.stages.train.batch import batch_of, draw_batch
from sdlora.stages.train.dataset import BatchOrder, Example, Geometry
from sdlora.stages.train.loop import Run, loss_of, optimizer_step, ready

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_IN_THE_REGISTRY = {"cuda": 1, "meta": 14}  # c10::DeviceType
SIDE = 64
TEXT = "captain, left"
#: Type of the base, and `mixed_precision`.
PRECISIONS = {
    "fp32": ("fp32", None), "bf16": ("bf16", None), "fp16": ("fp16", None), "fp32 under fp16": ("fp32", "fp16"),
    "fp16 under bf16": ("fp16", "bf16"), "pure bf16": ("bf16", "no"),
}  # fmt: skip
FACTORS: dict[str, tuple[Any, ...]] = {
    "family": ("sd", "sdxl", "sd3"),
    "precision": tuple(PRECISIONS),
    "cache": ("none", "ram", "disk"),
    "checkpointing": (False, True),
    "text_encoder": (False, True),
    "pivotal": (False, True),
    "prior": (False, True),
    "mask": (False, True),
    "ema": (False, True),
}


@dataclass(frozen=True)
class Case:
    family: str
    precision: str
    cache: str
    checkpointing: bool
    text_encoder: bool
    pivotal: bool
    prior: bool
    mask: bool
    ema: bool

    @property
    def is_possible(self) -> bool:
        return not (self.family == "sd3" and self.pivotal)

    def __str__(self) -> str:
        options = [name for name in FACTORS if getattr(self, name) is True]
        return "-".join([self.family, self.precision.replace(" ", "_"), self.cache, *options])

    def train(self) -> Train:
        return Train(
            rank=2, steps=2, checkpoint_every=2, optimizer="adamw", learning_rate=1e-3,
            mixed_precision=PRECISIONS[self.precision][1], cache_latents=self.cache,
            gradient_checkpointing=self.checkpointing, text_encoder=TextEncoder(rank=2) if self.text_encoder else None,
            pivotal=Pivotal() if self.pivotal else None, prior=Prior(prompt="a head") if self.prior else None,
            mask="padding" if self.mask else "none", ema=Ema() if self.ema else None,
        )  # fmt: skip


def pairwise() -> list[Case]:
    """As few cases as a greedy walk finds in which every two values of two factors meet."""
    every = [case for values in product(*FACTORS.values()) if (case := Case(*values)).is_possible]
    pairs_of = {case: {*combinations([(name, getattr(case, name)) for name in FACTORS], 2)} for case in every}
    left = set().union(*pairs_of.values())
    found = []
    while left:
        best = max(every, key=lambda case: len(pairs_of[case] & left))
        left -= pairs_of[best]
        found.append(best)
    return found


CASES = pairwise()
IN_FP16 = [case for case in CASES if "fp16" in PRECISIONS[case.precision]]
#: On the CPU: all that it can predict, which keeps fp16 weights in fp32, and one of the others.
STEPS = [case for case in CASES if case not in IN_FP16] + IN_FP16[:1]


class FakeAccelerate:
    """The calls that accelerate makes for one process on one GPU, but for the scaler, which asks for numbers."""

    scaler = None

    def __init__(self, precision: str, device: torch.device) -> None:
        self._precision, self.device = precision, device

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._precision == "no" else torch.autocast(self.device.type, DTYPES[self._precision])

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def clip_grad_norm_(self, parameters: list[nn.Parameter], norm: float) -> None:
        nn.utils.clip_grad_norm_(parameters, norm)


@pytest.fixture(scope="module")
def bases(small_sd3: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    """As few operations as a family can have: on fake tensors their number is the time."""
    sd, sdxl = (tmp_path_factory.mktemp(name) for name in ("sd", "sdxl"))
    return {"sd": save_small_sd(sd), "sdxl": save_small_sdxl(sdxl, depth=1), "sd3": small_sd3}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "a.png"
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(path)
    return path


def base_of(case: Case, bases: dict[str, Base]) -> Base:
    return bases[case.family].model_copy(update={"dtype": PRECISIONS[case.precision][0]})


def weights_of(case: Case) -> torch.dtype:
    """Type of the frozen weights on a GPU."""
    own, precision = PRECISIONS[case.precision]
    return DTYPES[own if own == "fp32" or precision in (None, "no") else precision]


def shapes_of(case: Case, base: Base, device: torch.device) -> _Shapes:
    """A base on fake tensors of the types that a GPU would have."""
    shapes = _Shapes(trained_base(base, case.train(), CUDA), device)
    shapes.mode = FakeTensorMode(allow_non_fake_inputs=True)  # pictures, and the scheduler's tables
    shapes.model.dtype = weights_of(case)
    for part in shapes.model.parts():
        put_into(part, shapes.model.dtype)
    # a tokenizer's numbers are real, and cannot be sent to a card that is not there
    shapes.model.tokenize = lambda prompts: _blank_tokens(shapes.model, len(prompts))  # type: ignore[method-assign]
    order = BatchOrder.of([Example("p", (torch.zeros(1, 1, 1),), (), (TEXT,))], 1, 1)
    for step in range(2):
        order.draws(step)  # remembered: drawing the order needs numbers
    return shapes


def run_of(case: Case, shapes: _Shapes, picture: Path) -> Run:
    """The run that `prepare` makes, of fake tensors."""
    train, model = case.train(), shapes.model
    _add_lora(model, train)
    shapes.materialize()
    parameters = [p for part in model.parts() for p in part.parameters() if p.requires_grad]
    shape = (model.pipeline.vae.config.latent_channels, *(SIDE // model.pipeline.vae_scale_factor,) * 2)
    mask = torch.ones(1, *shape[1:]) if case.mask else None
    numbers = (torch.zeros(shape),)
    plain = Example("p", numbers, numbers, (TEXT,), mask=(mask,))
    shown, latents_of = plain, latents.cached
    if case.cache != "disk":
        place = Geometry((SIDE, SIDE), (0, 0, SIDE, SIDE), (1365, 901), (0, 0))
        shown = replace(plain, mean=(), std=(), files=(picture,), geometry=(place,))
    if case.cache == "ram":
        (shown,) = latents.encoded([shown], model)
    elif case.cache == "none":
        latents_of = latents.live(model)
    accelerate: Any = FakeAccelerate(train.precision(model.base.dtype), shapes.device)
    if train.learns_text:
        conditioning_of = texts.learning(model, accelerate.autocast, None)
    else:
        conditioning_of = texts.cached(model, [TEXT])
    optimizer = choices.pick(choices.OPTIMIZERS, "adamw")([{"params": parameters, "lr": 1e-3}], train)
    run = Run(
        settings=train, flip=Flip(), model=model, examples=[shown], order=BatchOrder.of([shown], 1, 1),
        latents_of=latents_of, conditioning_of=conditioning_of, parameters=parameters, optimizer=optimizer,
        lr_schedule=choices.pick(choices.LR_SCHEDULES, "constant")(optimizer, train), accelerator=accelerate,
        objective=model.objective(train), average=[p.detach().clone() for p in parameters] if case.ema else None,
    )  # fmt: skip
    if case.prior:
        run.prior = replace(run, examples=[plain], order=BatchOrder.of([plain], 1, 1), latents_of=latents.cached)
    return run


@pytest.fixture
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


def are(tensors: Iterable[Tensor], *kind: object) -> bool:
    """Whether all tensors have one type and device."""
    return {(tensor.dtype, tensor.device) for tensor in tensors} == {kind}


#: Operations that return a number, for which the CPU waits.
_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.nonzero.default)


class Traffic(TorchDispatchMode):
    """Counts operations, copies from the CPU to the card, and moments in which the CPU waits for the card."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.copies = self.waits = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = operation(*args, **(kwargs or {}))
        given, taken = ([x for x in tree_iter(some) if isinstance(x, Tensor)] for some in ((args, kwargs), made))
        here, there = ({x.device.type for x in some} for some in (given, taken))
        self.operations += "cuda" in here | there
        # a number beside the card's tensors is part of a kernel's call, and is not copied
        numbers = all(x.dim() == 0 for x in given if x.device.type == "cpu") and "cuda" in here
        self.copies += "cpu" in here and "cuda" in there and not numbers
        self.waits += "cuda" in here and ("cpu" in there or operation in _READS)
        return made


def traffic_of(case: Case, bases: dict[str, Base], picture: Path, ahead: bool) -> Traffic:
    """Of a batch, from its draw to its loss."""
    shapes = shapes_of(case, base_of(case, bases), CUDA)
    with shapes.mode, torch.no_grad():
        run = run_of(case, shapes, picture)
        loss_of(run, draw_batch(run, 0, 0))  # tables go to the card at their first use
        with Traffic() as traffic:
            loss_of(run, batch_of(run, ready(run, 1)()[0]) if ahead else draw_batch(run, 1, 0))
    return traffic


@pytest.mark.usefixtures("on_a_card")
@pytest.mark.parametrize("family", FACTORS["family"])
def test_a_step_takes_one_copy_and_never_waits(family: str, bases: dict[str, Base], picture: Path) -> None:
    case = Case(family, "bf16", "disk", False, False, False, False, True, False)
    before, after = (traffic_of(case, bases, picture, ahead) for ahead in (False, True))
    assert (before.copies, before.waits) == (5, 0)
    assert (after.copies, after.waits) == (1, 0)


@pytest.mark.usefixtures("on_a_card")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_batch_its_loss_an_encode_and_a_draw_on_cuda(case: Case, bases: dict[str, Base], picture: Path) -> None:
    shapes = shapes_of(case, base_of(case, bases), CUDA)
    model, weights = shapes.model, weights_of(case)
    with shapes.mode, torch.no_grad():
        run = run_of(case, shapes, picture)
        assert are([p for part in model.parts() for p in part.parameters() if not p.requires_grad], weights, CUDA)
        assert are([*run.parameters, *(run.average or [])], torch.float32, CUDA)
        for one in (run, *([run.prior] if run.prior else [])):
            batch = draw_batch(one, 0, 0)
            assert are([batch.latents, batch.noise, batch.input_noise], torch.float32, CUDA)
            assert {value.device for value in batch.conditioning.values()} == {CUDA}
            assert batch.timesteps.device == CUDA and (batch.mask is not None) == case.mask
            loss = loss_of(one, batch)
            assert are([loss], torch.float32, CUDA) and loss.shape == ()
        posterior = model.encode_images(torch.zeros(1, 3, SIDE, SIDE))
        assert are(posterior, torch.float32, CUDA) and posterior[0].shape[2:] == (16, 16)
    assert _draw_peak(shapes, 1, SIDE) > 0
    assert {p.dtype for p in model.pipeline.vae.parameters()} == {weights}, "who draws finds it as it was loaded"


@pytest.mark.parametrize("case", STEPS, ids=str)
def test_a_step_and_its_prediction(case: Case, bases: dict[str, Base], picture: Path) -> None:
    base = base_of(case, bases)
    shapes = shapes_of(case, base, CPU)
    with shapes.mode:
        run = run_of(case, shapes, picture)
        with Meter([t for part in shapes.model.parts() for t in (*part.parameters(), *part.buffers())]) as meter:
            loss = optimizer_step(run, 0)
    assert are([loss, *run.parameters, *(run.average or [])], torch.float32, CPU)
    assert all(are([state["exp_avg"]], torch.float32, CPU) for state in run.optimizer.state.values())
    names = {name: p for part in shapes.model.parts() for name, p in part.named_parameters() if p.requires_grad}
    unreached = [name for name, parameter in names.items() if parameter not in run.optimizer.state]
    assert all(name.startswith("encoder.layers.1.") for name in unreached), "of which SDXL and SD 3 read nothing"
    assert any("vectors" in name for name in names) == case.pivotal
    if case in IN_FP16:
        return
    demand = preflight.Demand(
        (16 if case.family == "sd3" else 4, 16, 16), images=case.cache == "none", texts=case.train().learns_text,
        encodes=case.cache == "ram", vae=base.dtype,
    )  # fmt: skip
    step = preflight.predict(case.train(), base, demand, CPU)[-1]
    assert step.parts["activations and gradients"] == pytest.approx(meter.peak, rel=0.15)


def test_every_two_values_meet() -> None:
    met = {pair for case in CASES for pair in combinations([(n, getattr(case, n)) for n in FACTORS], 2)}
    for (one, values), (other, others) in combinations(FACTORS.items(), 2):
        for value, another in product(values, others):
            forbidden = {value, another} == {"sd3", True} and "pivotal" in (one, other)
            assert (((one, value), (other, another)) in met) != forbidden


def test_what_cannot_be_is_refused_with_a_sentence(bases: dict[str, Base]) -> None:
    demand = preflight.Demand((16, 16, 16))
    with pytest.raises(ParamsError, match=r"train\.pivotal: diffusers loads no learnt embeddings for family sd3"):
        preflight.predict(Train(pivotal=Pivotal()), bases["sd3"], demand, CUDA)
    fp16 = TINY.model_copy(update={"dtype": "fp16"})
    with pytest.raises(ParamsError, match=r"train\.mixed_precision is no, but the base's dtype is fp16"):
        preflight.predict(Train(mixed_precision="no"), fp16, preflight.Demand((4, 16, 16)), CUDA)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_weights_follow_the_precision(precision: str, dtype: str) -> None:
    """Autocast would keep a copy of each weight beside it."""
    base, train = TINY.model_copy(update={"dtype": dtype}), Train(mixed_precision=precision)
    assert trained_base(base, train, CUDA).dtype == precision
    assert trained_base(base, train, CPU) is base
    assert trained_base(TINY, train, CUDA) is TINY
    assert trained_base(base, Train(mixed_precision="no"), CUDA) is base


def test_a_gpu_keeps_some_memory_free() -> None:
    phases = [preflight.Phase("train", {"unet": 8 * 2**30})]
    demand = preflight.Demand((4, 16, 16))
    preflight.check(Train(), TINY, demand, free=round(9.4 * 2**30), device="cuda", phases=phases)
    with pytest.raises(preflight.ResourceError, match=r"needs 9\.30 GiB of GPU memory"):
        preflight.check(Train(), TINY, demand, free=9 * 2**30, device="cuda", phases=phases)
    preflight.check(Train(), TINY, demand, free=8 * 2**30, device="cpu", phases=phases)


@pytest.mark.usefixtures("on_a_card")
def test_what_cannot_be_drawn_is_not_trained() -> None:
    phases, demand = [preflight.Phase("train", {"unet": 2**20})], preflight.Demand((4, 16, 16))
    few, many = (Sample(batch_size=size) for size in (1, 400))
    preflight.check(Train(), TINY, demand, free=2**30, device="cuda", phases=phases, drawing=(few, SIDE))
    with pytest.raises(
        preflight.ResourceError, match=r"drawing with the trained LoRA needs .*\n.*\n.*sample.batch_size"
    ):
        preflight.check(Train(), TINY, demand, free=2**30, device="cuda", phases=phases, drawing=(many, SIDE))
    preflight.check_drawing(few, SIDE, TINY, "cuda", free=2**30)  # a LoRA from elsewhere was never trained here
    with pytest.raises(preflight.ResourceError, match=r"drawing needs .* GiB are free\.\nIt is made of act.*\n.*hires"):
        preflight.check_drawing(many, SIDE, TINY, "cuda", free=2**30)
