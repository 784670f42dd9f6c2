"""Every family, precision and option on a card that is not there (`benchmarks/fake_card.py`)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import fake_card
from benchmarks.fake_card import CPU, CUDA, Traffic, cached_example, shapes_of, weights_of, with_lora, with_prior
from helpers import TINY
from PIL import Image
from shapes import save_small_sd, save_small_sdxl, small_vae
from torch import Tensor

from sdlora.config.params import Base
from sdlora.config.sample import Sample
from sdlora.config.train import Ema, Pivotal, Prior, TextEncoder, Train
from sdlora.errors import ParamsError
from sdlora.memory import preflight
from sdlora.memory.meter import Meter
from sdlora.memory.prediction import _draw_peak, _Shapes, draw_phase
from sdlora.models.loading import trained_base
from sdlora.stages.train import latents
from sdlora.stages.train.batch import batch_of, draw_batch
from sdlora.stages.train.dataset import Geometry
from sdlora.stages.train.loop import Run, loss_of, optimizer_step, ready

pytestmark = pytest.mark.slow

SIDE = 64
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
    bits: dict[object, int] = defaultdict(lambda: 1 << len(bits))  # sets of pairs are numbers: every worker walks
    pairs_of = {
        case: sum(bits[pair] for pair in combinations([(name, getattr(case, name)) for name in FACTORS], 2))
        for case in every
    }
    left = (1 << len(bits)) - 1
    found = []
    while left:
        best = max(every, key=lambda case: (pairs_of[case] & left).bit_count())
        left &= ~pairs_of[best]
        found.append(best)
    return found


#: What broke first on a card: SDXL's VAE, which overflows in fp16, encodes between fp16 networks.
LIVE_SDXL = Case("sdxl", "fp16", "none", False, False, False, False, False, False)
CASES = [*pairwise(), LIVE_SDXL]
IN_FP16 = [case for case in CASES if "fp16" in PRECISIONS[case.precision]]
#: On the CPU: all that it can predict, which keeps fp16 weights in fp32, and one of the others.
STEPS = [case for case in CASES if case not in IN_FP16] + IN_FP16[:1]


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


def run_of(case: Case, shapes: _Shapes, picture: Path) -> Run:
    """The run that `prepare` makes, of fake tensors."""
    train = case.train()
    with_lora(train, shapes)
    plain = cached_example(shapes, SIDE, case.mask)
    shown, latents_of = plain, latents.cached
    if case.cache != "disk":
        place = Geometry((SIDE, SIDE), (0, 0, SIDE, SIDE), (1365, 901), (0, 0))
        shown = replace(plain, mean=(), std=(), files=(picture,), geometry=(place,))
    if case.cache == "ram":
        (shown,) = latents.encoded([shown], shapes.model)
    elif case.cache == "none":
        latents_of = latents.live(shapes.model)
    run = fake_card.run_of(train, shapes, shown, latents_of)
    if case.prior:
        with_prior(run, plain)
    return run


@pytest.fixture
def on_a_card() -> Iterator[None]:
    with fake_card.on_a_card():
        yield


def are(tensors: Iterable[Tensor], *kind: object) -> bool:
    """Whether all tensors have one type and device."""
    return {(tensor.dtype, tensor.device) for tensor in tensors} == {kind}


def traffic_of(case: Case, bases: dict[str, Base], picture: Path, ahead: bool) -> Traffic:
    """Of a batch, from its draw to its loss."""
    shapes = shapes_of(case.train(), base_of(case, bases), CUDA)
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
    shapes = shapes_of(case.train(), base_of(case, bases), CUDA)
    model, weights = shapes.model, weights_of(base_of(case, bases), case.train())
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
    shapes = shapes_of(case.train(), base, CPU)
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
def test_what_cannot_be_drawn_is_not_trained(bases: dict[str, Base]) -> None:
    base = bases["sd"]
    phases, demand = [preflight.Phase("train", {"unet": 2**20})], preflight.Demand((4, 16, 16))
    few, many = (Sample(batch_size=size) for size in (1, 1000))
    preflight.check(Train(), base, demand, free=2**30, device="cuda", phases=phases, drawing=(few, SIDE))
    with pytest.raises(
        preflight.ResourceError, match=r"drawing with the trained LoRA needs .*\n.*\nAny .*:\n  sample.batch_size: 1: 0"
    ):
        preflight.check(Train(), base, demand, free=2**30, device="cuda", phases=phases, drawing=(many, SIDE))
    preflight.check_drawing(few, SIDE, base, "cuda", free=2**30)  # a LoRA from elsewhere was never trained here
    with pytest.raises(
        preflight.ResourceError, match=r"drawing needs .* GiB are free\.\nIt is made of act.*\nAny .*:\n  sample.ba"
    ):
        preflight.check_drawing(many, SIDE, base, "cuda", free=2**30)


def drawing_of(base: Base, **options: Any) -> int:
    """Bytes that drawing pictures of the base's own side takes beside the weights, on CUDA."""
    return draw_phase(Sample(**options), base.size_px, base, CUDA).parts["activations"]


@pytest.mark.usefixtures("on_a_card")
def test_decoding_in_parts_takes_less_and_is_advised(bases: dict[str, Base], tmp_path: Path) -> None:
    """With a VAE that takes more than its denoiser, as SDXL's does."""
    small_vae(block_out_channels=(128, 128, 128)).save_pretrained(tmp_path)
    base, sample, side = bases["sdxl"].model_copy(update={"vae": str(tmp_path)}), Sample(batch_size=4), 64
    whole, sliced, tiled = (drawing_of(base, decode=name, batch_size=4) for name in ("whole", "sliced", "tiled"))
    assert sliced < 0.3 * whole and tiled < 0.5 * sliced
    demand, phases = preflight.Demand((4, 16, 16)), [preflight.Phase("train", {"unet": 2**20})]
    fits = draw_phase(sample.model_copy(update={"decode": "sliced"}), side, base, CUDA)
    with pytest.raises(preflight.ResourceError) as told:
        preflight.check(
            Train(), base, demand, device="cuda", phases=phases, drawing=(sample, side),
            free=preflight._needed(fits.total, CUDA),
        )  # fmt: skip
    ways = [line.rpartition(": ")[0].strip() for line in str(told.value).splitlines()[3:]]
    assert ways == [
        "sample.batch_size: 1", "sample.decode: sliced", "sample.decode: tiled",
        "sample.decode: tiled, sample.batch_size: 1",
    ]  # fmt: skip
    with pytest.raises(preflight.ResourceError, match=r"No setting of sample makes it fit: use a smaller fit\.size_px"):
        preflight.check_drawing(sample, side, base, "cuda", free=2**20)


@pytest.mark.usefixtures("on_a_card")
def test_a_decoder_that_overflows_is_counted_in_fp32(bases: dict[str, Base]) -> None:
    """SDXL's draws fp16 latents and decodes them in fp32, weights included."""
    in_fp16, in_bf16 = (drawing_of(bases["sdxl"].model_copy(update={"dtype": kind})) for kind in ("fp16", "bf16"))
    assert in_fp16 > 1.9 * in_bf16
    others = [drawing_of(bases["sd"].model_copy(update={"dtype": kind})) for kind in ("fp16", "bf16")]
    assert others[0] == others[1]
