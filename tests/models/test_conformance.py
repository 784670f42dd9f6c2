"""What every model family has to be, on small random weights: run it on yours by a line in `shapes.SMALL_BASES`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import SMALL_BASES
from small_set import captain
from torch import Tensor
from training import ABOUT

from sdlora import choices, tensors
from sdlora.config.params import Base, Flip
from sdlora.config.train import TextEncoder, Train
from sdlora.lora.attach import attach_lora
from sdlora.lora.diffusers_file import write_lora
from sdlora.lora.tool_files import Trained, write_kohya
from sdlora.memory import preflight
from sdlora.memory.meter import Meter
from sdlora.models import ModelFamily, load_model
from sdlora.models.objective import Objective
from sdlora.stages.encode.posterior import posterior_of
from sdlora.stages.train import latents, texts
from sdlora.stages.train.batch import draw_batch
from sdlora.stages.train.dataset import Example
from sdlora.stages.train.loop import optimizer_step, train_loop
from sdlora.stages.train.run import prepare

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TEXTS = ["captain, black coat on the left", ""]


@pytest.fixture(scope="module", params=SMALL_BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(choices.FAMILIES, "clip-skip", "toy_family:ClipSkip")
        torch.set_num_threads(1)
        yield SMALL_BASES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(base: Base) -> ModelFamily:
    """Loaded once and changed by no test."""
    return load_model(base, "cpu")


def settings(**changes: object) -> Train:
    values = {"rank": 4, "alpha": 1.5, "steps": 2, "checkpoint_every": 2, "learning_rate": 1e-2, "optimizer": "adamw"}
    return Train(**{**values, "mixed_precision": "no", **changes})


def objective_of(model: ModelFamily) -> Objective:
    return model.objective(settings())


def shape_of(model: ModelFamily) -> tuple[int, int, int]:
    cells = 64 // model.pipeline.vae_scale_factor
    return model.pipeline.vae.config.latent_channels, cells, cells


def examples(model: ModelFamily, count: int = 3) -> list[Example]:
    source, shape = torch.Generator().manual_seed(1), shape_of(model)
    means = [torch.randn(shape, generator=source) for _ in range(count)]
    return [Example(f"p{n}", (mean,), (torch.full(shape, 0.1),), (TEXTS[0],)) for n, mean in enumerate(means)]


def pair(model: ModelFamily) -> tuple[Tensor, Tensor]:
    """Clean latents, in [-1, 1] because DDIM clips them where a base's config does not forbid it, and noise."""
    source = torch.Generator().manual_seed(2)
    clean, noise = (torch.randn(1, *shape_of(model), generator=source) for _ in range(2))
    return clean.clamp(-1, 1), noise


def sampler_of(model: ModelFamily, steps: int) -> Any:
    """The first scheduler on the menu that fits the family, with the base's config."""
    fitting = [name for name in choices.SCHEDULERS if model.draws_with(choices.pick(choices.SCHEDULERS, name))]
    config = dict(model.pipeline.scheduler.config)
    if "timestep_spacing" in config:
        config["timestep_spacing"] = "leading"  # where DDIM, which steps by N / steps, lands on its own timesteps
    scheduler = model.sampler(fitting[0]).from_config(config)
    scheduler.set_timesteps(steps)
    return scheduler


def test_the_suite_has_a_base_of_every_family() -> None:
    assert SMALL_BASES.keys() >= choices.FAMILIES.keys()


def test_the_vae_alone_encodes_the_same_bytes(base: Base, model: ModelFamily, tmp_path: Path) -> None:
    captain(1, (64, 64)).save(tmp_path / "a.png")
    alone = load_model(base, "cpu", ("vae",))
    assert alone.parts() == [alone.pipeline.vae]
    whole, same = (posterior_of(one, tmp_path / "a.png") for one in (model, alone))
    assert all(torch.equal(*pair) for pair in zip(whole, same, strict=True))


def test_text_encoders_alone_say_the_same_and_the_denoiser_comes_later(base: Base, model: ModelFamily) -> None:
    parted = load_model(base, "cpu", ("vae", "text_encoders"))
    assert getattr(parted.pipeline, parted.denoiser_name) is None
    assert parted.resolution_multiple == model.resolution_multiple and parted.naming() == model.naming()
    told, same = (one.encode_prompts(TEXTS[:1]) for one in (model, parted))
    assert all(torch.equal(told[name], same[name]) for name in told)
    parted.keep_only()
    parted.load("denoiser")
    assert parted.parts() == [parted.denoiser] and not any(p.requires_grad for p in parted.denoiser.parameters())
    noisy, _ = pair(model)
    with torch.no_grad():
        ours, theirs = (one.predict(noisy, torch.tensor([5]), told) for one in (parted, model))
    assert torch.equal(ours, theirs)


def test_forward_is_the_pipelines(model: ModelFamily) -> None:
    """What the denoiser answers while diffusers draws without guidance is what `predict` says of the same latents."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def look(module: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        noisy = args[0] if args else named["hidden_states"]
        timestep = args[1] if len(args) > 1 else named["timestep"]
        seen.append((noisy.clone(), timestep.clone(), output[0].clone()))

    hook = model.denoiser.register_forward_hook(look, with_kwargs=True)
    model.pipeline(
        **model.prompting([TEXTS[0]], 1.0, None), height=64, width=64, num_inference_steps=3, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    hook.remove()
    assert len(seen) >= 3
    told = model.encode_prompts([TEXTS[0]])
    for noisy, timestep, theirs in seen:
        with torch.no_grad():
            ours = model.predict(noisy, timestep.expand(1), told)
        assert ours.shape == noisy.shape
        assert (ours - theirs).abs().max() < 1e-5


def test_a_perfect_prediction_leads_back_to_the_clean_latents(model: ModelFamily) -> None:
    objective, scheduler, (clean, noise) = objective_of(model), sampler_of(model, 25), pair(model)

    def drawn(sign: int) -> Tensor:
        scheduler.set_timesteps(25)
        sample = objective.add_noise(clean, noise, scheduler.timesteps[:1])
        for timestep in scheduler.timesteps:
            answer = sign * objective.target(clean, noise, timestep.view(1))
            sample = scheduler.step(answer, timestep, sample).prev_sample
        return sample

    # DDIM ends at the first timestep's noise, 3 % of it, where the base's config says so (set_alpha_to_one)
    assert (drawn(1) - clean).std() < 0.05
    assert (drawn(-1) - clean).std() > 0.5


def test_training_and_drawing_agree_on_how_noisy_a_timestep_is(model: ModelFamily) -> None:
    objective, scheduler, (clean, noise) = objective_of(model), sampler_of(model, 10), pair(model)
    theirs = getattr(scheduler, "scale_noise", None) or (lambda x, t, n: scheduler.add_noise(x, n, t))
    for timestep in scheduler.timesteps:
        ours = objective.add_noise(clean, noise, timestep.view(1))
        assert torch.allclose(ours, theirs(clean, timestep.view(1), noise), atol=1e-6)


def test_timesteps_are_those_the_base_was_trained_on(model: ModelFamily) -> None:
    """Drawn ones lie in the base's range; a shift is the scheduler's own: its table of noise levels is ours."""
    objective = objective_of(model)
    drawn = objective.timesteps(torch.Generator().manual_seed(3), 4000)
    config = model.pipeline.scheduler.config
    assert drawn.shape == (4000,) and float(drawn.min()) >= 0 and float(drawn.max()) <= config.num_train_timesteps
    if "shift" in config:
        levels = torch.arange(config.num_train_timesteps, 0, -1) / config.num_train_timesteps
        fresh = type(model.pipeline.scheduler).from_config(config)
        assert torch.allclose(objective.shifted(levels), fresh.sigmas, atol=1e-6)  # type: ignore[attr-defined]
        assert float(drawn.median()) == pytest.approx(1000 * config.shift / (1 + config.shift), rel=0.03)
    else:
        assert float(drawn.float().mean()) == pytest.approx((config.num_train_timesteps - 1) / 2, rel=0.03)


@pytest.mark.parametrize("text", [False, True])
def test_files_draw_what_was_trained(
    base: Base, model: ModelFamily, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bool
) -> None:
    """With alpha other than rank: diffusers' file, and the one with kohya's names where the family has them."""
    train = settings(text_encoder=TextEncoder(rank=3, alpha=5.0, learning_rate=1e-2) if text else None)
    run = prepare(train, Flip(), base, examples(model), trigger="captain")
    train_loop(run, None, lambda state: None)
    batch = draw_batch(run, 0, 0)

    @torch.no_grad()
    def answer(of: ModelFamily) -> Tensor:
        of.denoiser.eval()
        told = of.encode_prompts([TEXTS[0]]) if of.text_encoders() else batch.conditioning
        return of.predict(batch.latents, batch.timesteps, told)

    trained, plain = answer(run.model), answer(model)
    moved = float((trained - plain).abs().max())
    assert moved > 1e-3
    native = write_lora(tmp_path, run.model, train)
    kohya = write_kohya(Trained(native, "name", 2, train, base, ABOUT))
    assert (kohya is None) == (type(model).kohya is None)
    assert ("has no names in kohya's format" in capsys.readouterr().out) == (kohya is None)
    for file in (native, kohya):
        if file is not None:
            fresh = load_model(base, "cpu")
            attach_lora(fresh.pipeline, file, 1.0)
            assert float((answer(fresh) - trained).abs().max()) < 1e-3 * moved + 1e-5, file.name


def test_cached_texts_are_the_live_ones(model: ModelFamily, tmp_path: Path) -> None:
    live = texts.live(model)(TEXTS)
    kept = texts.cached(model, TEXTS)(TEXTS)
    texts.on_disk(model, TEXTS, "weights", tmp_path)
    read = texts.on_disk(model, TEXTS, "weights", tmp_path)(TEXTS)
    for name, value in live.items():
        assert value.shape[0] == len(TEXTS)
        assert torch.equal(value, kept[name]) and torch.equal(value, read[name])


def test_cached_latents_are_the_live_ones(model: ModelFamily, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    captain(1, (64, 64)).save(picture)
    example = Example("a", (), (), ("",), files=(picture,))
    (kept,) = latents.encoded([example], model)
    mean, std = posterior_of(model, picture)
    tensors.write(tmp_path / "a.safetensors", {"mean": mean, "std": std})
    read, live = tensors.read(tmp_path / "a.safetensors"), latents.live(model)(example, 0)
    assert mean.shape == shape_of(model)
    for one, other in (
        (live[0], kept.mean[0]),
        (live[0], read["mean"]),
        (live[1], kept.std[0]),
        (live[1], read["std"]),
    ):
        assert torch.equal(one, other)


def test_latents_come_back_as_the_picture_that_the_pipeline_decodes(model: ModelFamily) -> None:
    """Scale and shift: the pipeline decodes our latents as it decodes its VAE's own."""
    vae, config = model.pipeline.vae, model.pipeline.vae.config
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    mean, _ = model.encode_images(picture)
    with torch.no_grad():
        own = vae.encode(picture).latent_dist.mean
    assert torch.allclose(mean / config.scaling_factor + (config.shift_factor or 0), own, atol=1e-5)


def test_memory_is_predicted(base: Base, model: ModelFamily) -> None:
    """The worst moment of a real step, by the meter, against the prediction."""
    train, shots = settings(batch_size=2), examples(model)
    run = prepare(train, Flip(), base, shots)
    optimizer_step(run, 0)  # makes the optimizer's state
    with Meter([*run.model.denoiser.parameters(), *run.model.denoiser.buffers()]) as meter:
        optimizer_step(run, 1)
    load, *_, step = preflight.predict(train, base, preflight.demand_of(shots, train, base), CPU)
    assert step.parts["activations and gradients"] == pytest.approx(meter.peak, rel=0.15)
    networks = {name: part for name, part in model.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    real = {name: sum(p.nbytes for p in part.parameters()) for name, part in networks.items()}
    denoiser = real.pop(model.denoiser_name)  # comes when the others are gone
    assert load.parts == real and step.parts[model.denoiser_name] == denoiser
