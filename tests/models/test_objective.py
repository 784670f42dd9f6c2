"""Objectives against their formulas, and every base or setting that one cannot be had of."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from helpers import TINY
from torch import Tensor
from training import examples, settings, small_base

from sdlora import choices
from sdlora.config.params import Base, Flip
from sdlora.config.train import Pivotal
from sdlora.errors import DataError, ParamsError, SdloraError
from sdlora.memory import preflight
from sdlora.models import load_model
from sdlora.models.objective import Epsilon, FlowMatching, Objective, Velocity, objective_of
from sdlora.models.sd import StableDiffusion
from sdlora.models.sd3 import StableDiffusion3
from sdlora.stages.train.run import prepare

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
WORDS = {"epsilon": Epsilon, "v_prediction": Velocity}
FILE = "m/scheduler/scheduler_config.json"


def diffusion(**said: Any) -> Objective:
    """As a base's file that says this would have it."""
    config = DDPMScheduler.from_config({"_class_name": "DDPMScheduler", **BETAS, **said}).config
    return objective_of((Epsilon, Velocity), config, FILE, settings())


def flow(**options: Any) -> FlowMatching:
    config = FlowMatchEulerDiscreteScheduler.from_config({"num_train_timesteps": 1000, "shift": 3.0}).config
    found = objective_of((FlowMatching,), config, FILE, settings(**options))
    assert isinstance(found, FlowMatching)
    return found


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, 8, 8, generator=source), torch.randn(3, 4, 8, 8, generator=source)


@pytest.mark.parametrize("word", WORDS)
def test_diffusion_is_ddpms(word: str) -> None:
    objective, reference = diffusion(prediction_type=word), DDPMScheduler(**BETAS, prediction_type=word)
    (clean, noise), timesteps = drawn(), torch.tensor([0, 400, 999])
    assert type(objective) is WORDS[word]
    assert torch.equal(objective.add_noise(clean, noise, timesteps), reference.add_noise(clean, noise, timesteps))
    target = noise if word == "epsilon" else reference.get_velocity(clean, noise, timesteps)
    assert torch.equal(objective.target(clean, noise, timesteps), target)
    abar = reference.alphas_cumprod.double()[timesteps]
    assert torch.equal(objective.snr(timesteps), (abar / (1 - abar)).float())


def test_diffusions_timesteps_take_one_number_of_the_source_each() -> None:
    ours, theirs = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    assert int(diffusion(prediction_type="epsilon").timesteps(ours)) == int(
        torch.randint(0, 1000, (), generator=theirs)
    )
    assert torch.equal(torch.randn(4, generator=ours), torch.randn(4, generator=theirs))


def test_flow_matching_is_a_straight_line_from_noise_to_latents() -> None:
    objective, (clean, noise) = flow(), drawn()
    told = torch.tensor([0.0, 250.0, 1000.0])
    noisy = objective.add_noise(clean, noise, told)
    assert torch.equal(noisy[0], clean[0]) and torch.equal(noisy[2], noise[2])
    assert torch.allclose(noisy[1], 0.75 * clean[1] + 0.25 * noise[1])
    target = objective.target(clean, noise, told)
    assert torch.equal(target, noise - clean)
    sigma = (told / 1000).view(-1, 1, 1, 1)
    assert torch.allclose(noisy - sigma * target, clean, atol=1e-6)
    assert objective.snr(told).isnan().all()


def test_the_shift_moves_timesteps_towards_noise() -> None:
    levels = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
    expected = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.9, 27 / 28, 1.0])  # 3 t / (1 + 2 t)
    assert torch.allclose(flow().shifted(levels), expected)
    assert torch.allclose(flow(timestep_shift=1.0).shifted(levels), levels)


def test_timesteps_are_uniform_or_logit_normal() -> None:
    uniform, logit = (
        flow(timestep_sampling=name, timestep_shift=1.0).timesteps(torch.Generator().manual_seed(0), 20_000) / 1000
        for name in ("uniform", "logit_normal")
    )
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(uniform.var()) == pytest.approx(1 / 12, rel=0.02)
    assert float(logit.logit().mean()) == pytest.approx(0, abs=0.02)
    assert float(logit.logit().std()) == pytest.approx(1, rel=0.02)
    assert torch.equal(
        flow().timesteps(torch.Generator().manual_seed(0), 9), flow(timestep_sampling="logit_normal").timesteps(
            torch.Generator().manual_seed(0), 9
        ),
    )  # fmt: skip


def altered(folder: Path, **changes: Any) -> Base:
    """The small base with another scheduler file; None takes a setting out."""
    shutil.copytree(small_base().model, folder)
    file = folder / "scheduler/scheduler_config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return small_base().model_copy(update={"model": str(folder)})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prediction_type": "sample"}, "it says prediction_type: sample; choices .*: epsilon, v_prediction"),
        ({"prediction_type": None}, "it says no prediction_type; choices .*: epsilon, v_prediction"),
        ({"prediction_type": "banana"}, "it says prediction_type: banana; choices"),
        ({"beta_start": None, "beta_end": None}, "epsilon needs beta_start, beta_end, which the file does not say"),
        ({"num_train_timesteps": None}, "epsilon needs num_train_timesteps"),
    ],
    ids=str,
)
def test_a_scheduler_file_that_does_not_say_enough_is_an_error(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    base = altered(tmp_path / "base", **changes)
    named = f"{base.model}/scheduler/scheduler_config.json: "
    with pytest.raises(DataError, match=f"{named}{told}"):  # before anything is loaded
        preflight.check(settings(), base, preflight.demand_of(examples(), settings(), base), device="cpu")
    with pytest.raises(DataError, match=f"{named}{told}"):  # and without a preflight before the first step
        prepare(settings(), Flip(), base, examples(1))


def test_a_file_older_than_prediction_type_predicts_the_noise(tmp_path: Path) -> None:
    """SD 1.5's own: diffusers 0.6.0 had no other objective, so nothing is guessed."""
    base = altered(tmp_path / "base", prediction_type=None, _diffusers_version="0.6.0")
    assert type(load_model(base).objective(settings())) is Epsilon
    newer = altered(tmp_path / "newer", prediction_type=None, _diffusers_version="0.10.2")
    with pytest.raises(DataError, match="it says no prediction_type"):
        load_model(newer).objective(settings())


def test_a_base_of_another_objective_than_its_familys_is_an_error(small_sd3: Base, tmp_path: Path) -> None:
    flowing = altered(tmp_path / "sd")
    shutil.copytree(Path(small_sd3.model) / "scheduler", Path(flowing.model) / "scheduler", dirs_exist_ok=True)
    index = Path(flowing.model) / "model_index.json"
    index.write_text(index.read_text().replace("PNDMScheduler", "FlowMatchEulerDiscreteScheduler"))
    with pytest.raises(DataError, match=r"it says prediction_type: flow_matching; choices .*: epsilon, v_prediction"):
        load_model(flowing).check(settings())
    config = DDPMScheduler(**BETAS, prediction_type="epsilon").config
    with pytest.raises(DataError, match=r"it says .*; choices for this family: flow_matching"):
        objective_of((FlowMatching,), config, FILE, settings())


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"num_train_timesteps": 1000}, "flow_matching needs shift"),
        ({"num_train_timesteps": 1000, "shift": 3.0, "invert_sigmas": True}, "invert_sigmas is true"),
        ({"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": True}, "set train.timestep_shift"),
    ],
    ids=str,
)
def test_a_flow_file_that_does_not_say_enough_is_an_error(said: dict[str, Any], told: str) -> None:
    config = FlowMatchEulerDiscreteScheduler.from_config(said).config
    with pytest.raises(DataError, match=f"{FILE}: .*{told}"):
        objective_of((FlowMatching,), config, FILE, settings())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        *(({"weighting": name}, f"train.weighting is {name}.*flow_matching has none: set weighting: none")
          for name in choices.WEIGHTINGS if name != "none"),
        ({"loss": "huber"}, "train.huber_schedule is snr, .*choices: constant, exponential"),
        ({"pivotal": Pivotal()}, "train.pivotal: .* family sd3: leave it out"),
    ],
    ids=str,
)  # fmt: skip
def test_what_flow_matching_does_not_have_is_refused_before_anything_is_loaded(
    small_sd3: Base, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ParamsError, match=told):
        preflight.check(settings(**options), small_sd3, preflight.Demand((16, 16, 16)), device="cpu")


@pytest.mark.parametrize("schedule", ["constant", "exponential"])
def test_huber_needs_no_ratio_with_another_schedule(small_sd3: Base, schedule: str) -> None:
    load_model(small_sd3, "cpu").check(settings(loss="huber", huber_schedule=schedule))


@pytest.mark.parametrize("option", [{"timestep_sampling": "uniform"}, {"timestep_shift": 2.0}], ids=str)
def test_what_only_flow_matching_has_is_refused_elsewhere(option: dict[str, Any]) -> None:
    name = next(iter(option))
    with pytest.raises(ParamsError, match=f"train.{name} belongs to flow_matching, but the base learns epsilon"):
        preflight.check(settings(**option), TINY, preflight.Demand((4, 16, 16)), device="cpu")


def test_each_family_draws_with_the_schedulers_of_its_objective() -> None:
    found = {name: choices.pick(choices.SCHEDULERS, name) for name in choices.SCHEDULERS}
    flowing = {name for name, scheduler in found.items() if FlowMatching.draws_with(scheduler)}
    assert flowing == {"flow_euler"}
    for name in choices.SCHEDULERS:
        fits, other = (StableDiffusion3, StableDiffusion) if name in flowing else (StableDiffusion, StableDiffusion3)
        fits.sampler(name)
        with pytest.raises(ParamsError, match=f"sample.scheduler is {name}, which cannot draw .*; choices: "):
            other.sampler(name)


def test_pictures_of_a_size_that_the_family_does_not_take_are_refused(small_sd3: Base) -> None:
    """4 px a latent cell, 2 cells a patch: multiples of 8 px."""
    with pytest.raises(SdloraError, match=r"72 x 60 px, but family sd3 takes multiples of 8 px: set fit.size_px"):
        preflight.check(settings(), small_sd3, preflight.Demand((16, 15, 18)), device="cpu")
