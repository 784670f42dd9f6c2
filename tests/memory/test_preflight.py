"""The prediction against what training really allocates, and what a user is told."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, environment
from operations import Operations
from PIL import Image
from pydantic import ValidationError
from training import examples, measured, predict_once, settings

from sdlora import choices
from sdlora.cli import main
from sdlora.config.load import load
from sdlora.config.params import Base, Flip
from sdlora.config.sample import Sample
from sdlora.errors import MissingError, ParamsError, ResourceError
from sdlora.lora import types
from sdlora.memory import meter as memory
from sdlora.memory import preflight
from sdlora.memory.demand import demand_of
from sdlora.memory.prediction import encode_phase
from sdlora.models import load_model
from sdlora.stages.train.batch import draw_batch
from sdlora.stages.train.dataset import Geometry
from sdlora.stages.train.latents import with_masks
from sdlora.stages.train.loop import backward, loss_of, optimizer_step, train_loop
from sdlora.stages.train.run import prepare

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
LATENT = (4, 16, 16)


def phase(name: str, base: Base = TINY, **changes: object) -> preflight.Phase:
    phases = preflight.predict(settings(**changes), base, demand_of(examples(), settings(), base), CPU)
    return next(phase for phase in phases if phase.name == name)


@pytest.fixture
def _each_prediction_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a change that is advised, tried and made."""
    predict_once(monkeypatch)


def test_the_meter_counts_what_lives_at_once() -> None:
    with memory.Meter() as meter:
        one = torch.zeros(1000)
        two = one + 1
        view = two[:10]
        del one
        three = torch.zeros(250)
    assert (meter.live, meter.peak) == (5000, 8000)
    del two, three
    assert meter.live == 4000  # the view keeps its storage
    del view
    assert meter.live == 0


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"batch_size": 4}, {"gradient_checkpointing": True, "batch_size": 4}, {"rank": 64},
        {"accumulation": 3, "rank": 160}, {"mixed_precision": "bf16", "batch_size": 2},
        *({"lora_type": name} for name in choices.LORA_TYPES if name != "lora"), {"lora_type": "lokr", "dropout": 0.2},
    ],
    ids=str,
)  # fmt: skip
def test_the_prediction_is_what_a_real_step_allocates(changes: dict[str, object], small_sd: Base) -> None:
    """The same meter around real steps of the real loop on real tensors; the base's weights are known to both."""
    run = prepare(settings(**changes), Flip(), small_sd, examples())
    optimizer_step(run, 0)  # makes the optimizer's state
    unet = run.model.denoiser
    with memory.Meter([*unet.parameters(), *unet.buffers()]) as meter:
        optimizer_step(run, 1)
    predicted = phase("train", small_sd, **changes).parts["activations and gradients"]
    assert predicted == pytest.approx(meter.peak, rel=0.03)


@pytest.mark.parametrize("optimizer", sorted(choices.OPTIMIZERS))
def test_optimizer_state_is_what_the_real_one_keeps(optimizer: str, small_sd: Base) -> None:
    try:
        train = settings(optimizer=optimizer, rank=160)  # more than 4096 numbers a matrix: 8-bit state is 8 bits
    except ValidationError:  # learning_rate 1e-3 is not this optimizer's
        train = settings(optimizer=optimizer, rank=160, learning_rate=1.0)
    run = prepare(train, Flip(), small_sd, examples())
    optimizer_step(run, 0)
    state = [t for held in run.optimizer.state.values() for t in held.values() if isinstance(t, torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state}
    phases = preflight.predict(train, small_sd, demand_of(examples(), settings(), small_sd), CPU)
    assert phases[-1].parts["optimizer"] == pytest.approx(sum(storages.values()), rel=0.01)
    assert phases[-1].parts["lora"] == sum(p.numel() * 4 for p in run.parameters)


def test_adamw_keeps_eight_bytes_a_number_and_8bit_two() -> None:
    shapes = [torch.Size((64, 320))] * 5

    def cost(name: str) -> float:
        build = choices.pick(choices.OPTIMIZERS, name)
        return memory.optimizer_cost(lambda some: build([{"params": some, "lr": 1e-3}], settings()), shapes)[0] / (
            5 * 64 * 320
        )

    assert cost("adamw") == pytest.approx(8, abs=0.01)
    assert cost("adamw8bit") == pytest.approx(2, abs=0.15)  # and a scale for each block


def test_weights_are_counted_by_type(small_sd: Base) -> None:
    model = load_model(small_sd, "cpu")
    real = {name: sum(p.numel() * 4 for p in getattr(model.pipeline, name).parameters())
            for name in ("unet", "vae", "text_encoder")}  # fmt: skip
    unet = real.pop("unet")  # comes when the others are gone
    demand = demand_of(examples(), settings(), small_sd)
    plain, drawing, half = (
        {one.name: one.parts for one in preflight.predict(settings(**changes), base, demand, CPU)}
        for base, changes in (
            (small_sd, {}),
            (small_sd, {"prior": {"prompt": "a head"}}),
            (small_sd.model_copy(update={"dtype": "bf16"}), {}),
        )
    )
    assert plain["load"] == real and plain["train"]["unet"] == unet
    assert drawing["load"] == {**real, "unet": unet}
    assert drawing["prior"].items() >= {**real, "unet": unet}.items()
    assert half["load"] == {name: size // 2 for name, size in real.items()}


def test_caches_are_counted() -> None:
    mapped = demand_of(examples(3), settings(), TINY)
    assert mapped == preflight.Demand(LATENT, 0, 2), "the system takes pages of a file back where memory is short"
    place = Geometry((64, 64), (0, 0, 64, 64), (64, 64), (0, 0))
    shown = [replace(example, mean=(), std=(), geometry=(place, place)) for example in examples(3)]
    train = settings(cache_latents="ram")
    demand = demand_of(shown, train, TINY)
    assert demand == replace(mapped, cached=3 * 2 * 2 * 4 * 16 * 16 * 4, encodes=True)  # pictures, sides, mean and std
    parts = preflight.predict(train, TINY, demand, CPU)[-1].parts
    assert (parts["latents"], parts["masks"]) == (demand.cached, 0)
    assert parts["captions"] == 2 * 77 * 192 * 4
    loads, *_, trains = preflight.predict(
        settings(cache_latents="none"), TINY, preflight.Demand(LATENT, images=True), CPU
    )
    assert trains.parts["vae"] == loads.parts["vae"] > 0


def test_a_users_masks_are_counted_as_a_training_keeps_them(tmp_path: Path) -> None:
    place = Geometry((64, 64), (0, 0, 64, 64), (64, 64), (0, 0))
    Image.new("L", (64, 64), 128).save(tmp_path / "mask.png")
    masked = [
        replace(example, geometry=(place, place), mask_files=(tmp_path / "mask.png",) * 2) for example in examples(3)
    ]
    train = settings(mask="user")
    demand = demand_of(masked, train, TINY)
    kept = [mask for example in with_masks(masked, "user", 64 // LATENT[-1]) for mask in example.mask]
    assert demand.masks == demand.in_ram == sum(mask.nbytes for mask in kept if mask is not None) > 0
    assert preflight.predict(train, TINY, demand, CPU)[-1].parts["masks"] == demand.masks
    assert demand_of(masked, settings(mask="padding"), TINY).masks == 0, "those that lie alike share one"


@pytest.mark.workflow
@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is read from /proc")
def test_gradient_checkpointing_lowers_prediction_and_reality(served: Path) -> None:
    train = {"rank": 2, "steps": 1, "checkpoint_every": 1, "optimizer": "adamw", "batch_size": 32}
    found = {}
    for on in (False, True):
        process = measured(served, TINY, (4, 16, 16), **train, mixed_precision="no", gradient_checkpointing=on)
        peak = int(str(process["peak"])) - int(str(process["resting"]))
        found[on] = peak, phase("train", **{**train, "gradient_checkpointing": on}).parts["activations and gradients"]
    assert found[True][0] < 0.6 * found[False][0]
    assert found[True][1] < 0.6 * found[False][1]


@pytest.mark.usefixtures("_each_prediction_once")
def test_too_little_memory_is_told_with_ways_that_work(small_sd: Base) -> None:
    train, demand = settings(batch_size=8, rank=64), demand_of(examples(), settings(), small_sd)
    phases = preflight.predict(train, small_sd, demand, CPU)
    needed = phases[-1].total
    preflight.check(train, small_sd, demand, free=needed, device="cpu", phases=phases)
    free = round(needed * 0.8)
    with pytest.raises(ResourceError) as told:
        preflight.check(train, small_sd, demand, free=free, device="cpu", phases=phases)
    text = str(told.value)
    ways = ("train.batch_size: 1, train.accumulation: 8", "train.gradient_checkpointing: true", "base.dtype: bf16")
    for said in (f"needs {needed / 2**30:.2f} GiB of RAM", f"{free / 2**30:.2f} GiB are free", "(train)", *ways):
        assert said in text
    assert "train.rank: 16:" not in text  # saves too little here, so it is no advice
    for changes in ({"batch_size": 1, "accumulation": 8}, {"gradient_checkpointing": True}):
        preflight.check(train.model_copy(update=changes), small_sd, demand, free=free, device="cpu")


def test_a_training_that_cannot_be_predicted_may_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Asking(choices.pick(choices.FAMILIES, "sd")):  # type: ignore[misc]
        """A family whose prediction depends on the latents' numbers."""

        def predict(self, latents: torch.Tensor, *others: object) -> torch.Tensor:
            scale = float(latents.abs().max()) or 1.0
            return torch.Tensor(super().predict(latents / scale, *others))

    monkeypatch.setitem(choices.FAMILIES, "asking", "toy_family:Asking")
    monkeypatch.setattr("toy_family.Asking", Asking, raising=False)
    base = TINY.model_copy(update={"family": "asking"})
    preflight.check(settings(), base, demand_of(examples(), settings(), TINY), free=1, device="cpu")
    said = capsys.readouterr().out
    assert "memory cannot be predicted (DataDependentOutputException: aten._local_scalar_dense" in said
    assert "the training starts unchecked" in said


@pytest.mark.usefixtures("_each_prediction_once")
def test_ways_are_combined_when_none_is_enough_and_a_hopeless_run_is_told(small_sd: Base) -> None:
    train, demand = settings(batch_size=8, rank=64), demand_of(examples(), settings(), small_sd)
    base = small_sd.model_copy(update={"dtype": "bf16"})
    least = preflight.predict(
        settings(batch_size=1, accumulation=8, gradient_checkpointing=True, rank=16), base, demand, CPU
    )
    free = max(phase.total for phase in least)
    with pytest.raises(ResourceError, match=r"train\.batch_size: 1.*train\.gradient_checkpointing: true, .*rank: 16"):
        preflight.check(train, base, demand, free=free, device="cpu")
    with pytest.raises(ResourceError, match="no setting makes it fit"):
        preflight.check(train, base, demand, free=2**20, device="cpu")


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"second_prompt": "x"}, "sample.second_prompt is for families with a second text encoder"),
        ({"scheduler": "flow_euler"}, "flow_euler"),
        ({"decode": "tiled", "hires": None}, "a picture of 32 px is no larger than a tile, 32 px"),
    ],
)
def test_what_could_not_be_drawn_is_told_before_it_is_trained(sample: dict[str, object], said: str) -> None:
    """On a CPU, too."""
    demand = preflight.Demand((4, 8, 8))
    with pytest.raises(ParamsError, match=re.escape(said)):
        preflight.check(settings(), TINY, demand, device="cpu", drawing=(Sample(**sample), 32))


def test_free_memory_is_what_the_system_has() -> None:
    import psutil

    assert 0 < memory.free_bytes(CPU) <= psutil.virtual_memory().total


SDLORA = "from sdlora.cli import main; main()"
STRICT = "import warnings; warnings.simplefilter('error', RuntimeWarning)"


@pytest.mark.workflow
def test_a_version_shows_its_table(served: Path) -> None:
    done = subprocess.run(
        [served, "-c", f"{STRICT}; {SDLORA}", "preflight", "v8", "--device", "cpu"],
        cwd=ROOT, env={**environment(), "PYTHONPATH": str(ROOT / "src")}, text=True, capture_output=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "| MiB | encode | load | captions | train | draw |"
    totals = [float(cell) for cell in next(line for line in lines if "total" in line).split("|")[2:-1]]
    assert all(10 < total < 500 for total in totals)
    wrong = subprocess.run(
        [served, "-c", SDLORA, "preflight", "v88"],
        cwd=ROOT, env={**environment(), "PYTHONPATH": str(ROOT / "src")}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert wrong.returncode == 1 and "did you mean v8" in wrong.stderr


@pytest.mark.parametrize(
    ("option", "job"), [("--ram", "a training"), ("--drawing-ram", "drawing"), ("--encoding-ram", "encoding")]
)
def test_a_device_has_no_effect_on_what_a_cluster_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, option: str, job: str
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=rf"{option} is what {job} asks a cluster for.*leave --device out"):
        main(["preflight", "v8", option, "--device", "cpu"])


def test_an_unreachable_base_says_what_to_do() -> None:
    base = Base(model="stabilityai/stable-diffusion-xl-base-1.0", family="sdxl", size_px=1024, captioner="-")
    with pytest.raises(MissingError, match=r"hf download stabilityai/stable-diffusion-xl-base-1.0"):
        preflight.predict(settings(), base, preflight.Demand((4, 128, 128)), CPU)


def test_a_single_file_is_predicted_from_its_familys_published_configs() -> None:
    base = Base(model="mine.safetensors", family="sdxl", size_px=1024, dtype="bf16", captioner="-")
    plain = preflight.predict(settings(mixed_precision="bf16"), base, preflight.Demand((4, 128, 128)), CPU)[-1]
    assert plain.parts["unet"] == 2_567_463_684 * 2
    # others report 13.03 GiB for SDXL, 1024 px, batch 1, bf16 with a larger adapter (SimpleTuner, LoKr)
    assert 9 < plain.total / 2**30 < 13.1


def test_every_attention_is_fused() -> None:
    model = load_model(TINY, "cpu")
    types.add_lora(model, settings())
    attentions = sum(type(module).__name__ == "Attention" for module in model.denoiser.modules())
    with Operations() as operations:
        model.predict(torch.zeros(1, *LATENT), torch.tensor([5]), model.encode_prompts(["captain"]))
    fused = sum(count for name, count in operations.seen.items() if "scaled_dot_product" in name)
    assert fused >= attentions > 0
    assert not any("softmax" in name for name in operations.seen)


def test_a_third_family_is_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="is not on the menu"):
        Base(model=TINY.model, family="clip-skip", size_px=64, captioner="-")
    monkeypatch.setitem(choices.FAMILIES, "clip-skip", "toy_family:ClipSkip")
    base = Base(model=TINY.model, family="clip-skip", size_px=64, captioner="-")
    preflight.check(settings(), base, demand_of(examples(), settings(), TINY), device="cpu")
    toy = prepare(settings(), Flip(), base, examples())
    plain = prepare(settings(), Flip(), TINY, examples())
    assert type(toy.model).__name__ == "ClipSkip"
    text = examples()[0].text[0]
    one, other = (run.conditioning_of([text])["context"] for run in (toy, plain))
    assert one.shape == other.shape
    assert not torch.allclose(one, other)
    assert train_loop(toy, None, lambda state: None) != train_loop(plain, None, lambda state: None)


def test_fp16_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingError, match="fp16 needs a GPU"):
        prepare(settings(mixed_precision="fp16"), Flip(), TINY, examples(1))


def test_prior_pictures_take_no_second_set_of_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sd: Base
) -> None:
    """Each term has its own backward pass; the gradients are those of one over both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdlora.stages.train.prior.INFERENCE_STEPS", 4)  # nobody looks at them
    peaks = []
    for prior in (None, {"prompt": "a head", "pictures": 1}):
        run = prepare(settings(prior=prior, optimizer="adafactor"), Flip(), small_sd, examples())
        optimizer_step(run, 0)
        unet = run.model.denoiser
        with memory.Meter([*unet.parameters(), *unet.buffers()]) as meter:
            optimizer_step(run, 1)
        peaks.append(meter.peak)
    assert peaks[1] < 1.1 * peaks[0]
    predicted = phase("train", small_sd, prior={"prompt": "a head"}).parts["activations and gradients"]
    assert predicted == pytest.approx(peaks[1], rel=0.05)
    assert run.prior is not None and run.settings.prior is not None
    found = []
    for parted in (True, False):
        if parted:
            backward(run, draw_batch(run, 2, 0))
            backward(run.prior, draw_batch(run.prior, 2, 0), run.settings.prior.weight)
        else:
            terms = [loss_of(one, draw_batch(one, 2, 0)) for one in (run, run.prior)]
            torch.autograd.backward(terms[0] + run.settings.prior.weight * terms[1])
        found.append([p.grad.clone() for p in run.parameters if p.grad is not None])
        run.optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_what_a_gpu_that_is_not_here_would_take_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its types, with its headroom, and the RAM beside it."""
    monkeypatch.chdir(ROOT)
    params = load(ROOT / "params.yaml")
    half = TINY.model_copy(update={"dtype": "fp16"})
    params = params.model_copy(update={"bases": {**params.bases, params.versions["v8"].base: half}})
    preflight.show(params, "v8", "cuda")
    said = capsys.readouterr().out
    numbers = sum(p.numel() for p in choices.pick(choices.FAMILIES, "sd").outline(TINY, CPU).denoiser.parameters())
    assert "| MiB | encode | load | captions | train | draw |" in said and "free now" not in said
    assert f"| unet | 0.0 | 0.0 | 0.0 | {2 * numbers / 2**20:.1f} |" in said and "| packed | 0.0 " in said
    assert "RAM beside the card, libraries included, MiB: encode 4" in said
    assert said.strip().endswith("no GPU is here, so this is counted in a GPU's types on the CPU")


def test_to_encode_takes_the_vae_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    params = load(ROOT / "params.yaml")
    found = encode_phase(params.versions["v8"], TINY, CPU)
    vae = choices.pick(choices.FAMILIES, "sd").outline(TINY, CPU).pipeline.vae
    assert found.parts["vae"] == 4 * sum(p.numel() for p in vae.parameters())
    assert found.parts.keys() == {"vae", "activations"}
    monkeypatch.chdir(ROOT)
    main(["preflight", "v8", "--encoding-ram"])
    assert int(capsys.readouterr().out) == pytest.approx(2048 + 1.1 * found.total / 2**20, abs=100)


def test_families_page_shows_the_toy_family() -> None:
    assert Path(ROOT / "tests/toy_family.py").read_text().split('"""', 2)[2].strip() in "\n".join(
        line.removeprefix("    ") for line in (ROOT / "docs/families.md").read_text().splitlines()
    )
