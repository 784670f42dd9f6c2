"""What a denoiser is trained for: how noise is mixed in, what the target is, how timesteps are drawn and weighted.

Three objectives: the noise (epsilon), the velocity (v-prediction) and flow matching. Which one a base was trained for
stands in its scheduler's config; nothing is guessed where it does not.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from diffusers import DDPMScheduler
from torch import Generator, Tensor

from sdlora import choices
from sdlora.config.train import Train
from sdlora.errors import DataError, ParamsError

Config = Mapping[str, Any]
EPSILON, VELOCITY, FLOW_MATCHING = "epsilon", "v_prediction", "flow_matching"
UNSAID = "_use_default_values"  # where diffusers lists the settings that the file did not have
#: The first diffusers whose scheduler files have `prediction_type`; older bases, SD 1.x among them, predict the noise.
FIRST_WITH_PREDICTION_TYPE = (0, 9)


class Objective:
    """How clean latents become a question to the denoiser, and what the right answer is.

    Latents and noise are (B, C, h, w), timesteps (B,), as the denoiser is told them.
    """

    #: The word for it: diffusers' `prediction_type` where there is one.
    name: ClassVar[str]
    #: Whether a timestep has a signal-to-noise ratio that losses and weightings can use.
    has_snr: ClassVar[bool]
    #: Training options that only this objective has.
    options: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, config: Config, place: str, settings: Train) -> Self:
        """The objective of a scheduler's config.

        Args:
            config: As diffusers has loaded it.
            place: The file it came from, for messages.
            settings: How timesteps are drawn, where that can be chosen.

        Raises:
            DataError: If the file lacks what the objective needs.
        """
        raise NotImplementedError

    @staticmethod
    def draws_with(scheduler: Any) -> bool:
        """Whether a class of diffusers' schedulers steps through such predictions."""
        raise NotImplementedError

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents as noisy as the timesteps say."""
        raise NotImplementedError

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should answer."""
        raise NotImplementedError

    def timesteps(self, generator: Generator, count: int = 1) -> Tensor:
        """Draw timesteps (count,), on the generator's device."""
        raise NotImplementedError

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio (B,), fp32; NaN where the objective has none."""
        return torch.full(timesteps.shape, torch.nan, device=timesteps.device)


class _Diffusion(Objective):
    """x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise (DDPM, Ho et al., arXiv 2006.11239), t in 0 … N - 1, uniform."""

    has_snr = True

    def __init__(self, noise_scheduler: DDPMScheduler) -> None:
        self._noise_scheduler = noise_scheduler
        abar = noise_scheduler.alphas_cumprod.double()
        self._snr = (abar / (1 - abar)).float()

    @classmethod
    def of(cls, config: Config, place: str, settings: Train) -> Self:
        betas = () if config.get("trained_betas") is not None else ("beta_start", "beta_end", "beta_schedule")
        _require(config, place, ("num_train_timesteps", *betas), cls.name)
        return cls(DDPMScheduler.from_config(config))

    @staticmethod
    def draws_with(scheduler: Any) -> bool:
        return "beta_start" in scheduler._get_init_keys(scheduler)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        noisy: Tensor = self._noise_scheduler.add_noise(latents, noise, timesteps)
        return noisy

    def timesteps(self, generator: Generator, count: int = 1) -> Tensor:
        return torch.randint(0, self._noise_scheduler.config.num_train_timesteps, (count,), generator=generator)

    def snr(self, timesteps: Tensor) -> Tensor:
        """abar / (1 - abar)."""
        if self._snr.device != timesteps.device:
            self._snr = self._snr.to(timesteps.device)
        snr: Tensor = self._snr[timesteps]
        return snr


class Epsilon(_Diffusion):
    """The target is the noise."""

    name = EPSILON

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise


class Velocity(_Diffusion):
    """The target is v = sqrt(abar) noise - sqrt(1 - abar) x (Salimans and Ho, arXiv 2202.00512)."""

    name = VELOCITY

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        velocity: Tensor = self._noise_scheduler.get_velocity(latents, noise, timesteps)
        return velocity


class FlowMatching(Objective):
    """x_t = (1 - sigma) x + sigma noise, and the target is noise - x: rectified flow (Liu et al., arXiv 2209.03003).

    sigma is uniform in (0, 1), or logit-normal, sigmoid(n) with n ~ N(0, 1), the best of Esser et al., arXiv
    2403.03206 (3.1); then it is shifted to sigma' = s sigma / (1 + (s - 1) sigma) (equation 23), and the denoiser is
    told sigma' N. There is no signal-to-noise ratio to weigh by: how sigma is drawn is the weight.
    """

    name = FLOW_MATCHING
    has_snr = False
    options = ("timestep_sampling", "timestep_shift")

    def __init__(self, shift: float, sampling: str = "logit_normal", train_timesteps: int = 1000) -> None:
        self.shift, self.sampling, self.train_timesteps = shift, sampling, train_timesteps

    @classmethod
    def of(cls, config: Config, place: str, settings: Train) -> Self:
        _require(config, place, ("num_train_timesteps", "shift"), cls.name)
        if config.get("invert_sigmas"):
            raise DataError(
                f"{place}: invert_sigmas is true, but {cls.name} tells the denoiser how much noise there is"
            )
        shift = settings.timestep_shift
        if shift is None and config.get("use_dynamic_shifting"):
            raise DataError(
                f"{place}: use_dynamic_shifting is true, so the file names no one shift: set train.timestep_shift"
            )
        sampling = settings.timestep_sampling or "logit_normal"
        return cls(float(config["shift"]) if shift is None else shift, sampling, config["num_train_timesteps"])

    @staticmethod
    def draws_with(scheduler: Any) -> bool:
        keys = scheduler._get_init_keys(scheduler)
        return "shift" in keys and "beta_start" not in keys

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigma = (timesteps / self.train_timesteps).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def timesteps(self, generator: Generator, count: int = 1) -> Tensor:
        if self.sampling == "uniform":
            sigma = torch.rand(count, generator=generator)
        else:
            sigma = torch.randn(count, generator=generator).sigmoid()
        return self.shifted(sigma) * self.train_timesteps

    def shifted(self, sigma: Tensor) -> Tensor:
        """sigma' = s sigma / (1 + (s - 1) sigma)."""
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


def objective_of(kinds: Sequence[type[Objective]], config: Config, place: str, settings: Train) -> Objective:
    """The one of a family's objectives that its base was trained for.

    Args:
        kinds: What the family can be trained for.
        config: The base's scheduler config, as diffusers has loaded it.
        place: The file it came from.
        settings: The training section.

    Raises:
        DataError: If the file does not say one of them, or lacks what it needs.
        ParamsError: If the settings ask for what the objective does not have.
    """
    said, by_name = prediction_type(config), {kind.name: kind for kind in kinds}
    if said not in by_name:
        told = "no prediction_type" if said is None else f"prediction_type: {said}"
        raise DataError(f"{place}: it says {told}; choices for this family: {', '.join(sorted(by_name))}")
    refuse(by_name[said], settings)
    return by_name[said].of(config, place, settings)


def prediction_type(config: Config) -> str | None:
    """What a scheduler's file says the denoiser predicts; None where it does not say it."""
    if "prediction_type" in config and "prediction_type" not in config.get(UNSAID, ()):
        return str(config["prediction_type"])
    if "prediction_type" in config:
        version = str(config.get("_diffusers_version", "")).split(".")
        numbers = tuple(int(part) for part in version[:2] if part.isdigit())
        return EPSILON if len(numbers) == 2 and numbers < FIRST_WITH_PREDICTION_TYPE else None
    return FLOW_MATCHING if "shift" in config else None


def refuse(kind: type[Objective], settings: Train) -> None:
    """Refuse settings that mean nothing for an objective.

    Raises:
        ParamsError: Names the setting and what can be said instead.
    """
    for option in ("timestep_sampling", "timestep_shift"):
        if getattr(settings, option) is not None and option not in kind.options:
            raise ParamsError(
                f"train.{option} belongs to {FLOW_MATCHING}, but the base learns {kind.name}: leave it out"
            )
    if kind.has_snr:
        return
    if getattr(choices.pick(choices.WEIGHTINGS, settings.weighting), "needs_snr", False):
        raise ParamsError(
            f"train.weighting is {settings.weighting}, which weighs by the signal-to-noise ratio, and {kind.name} has "
            f"none: set weighting: none (what weighs there is train.timestep_sampling)"
        )
    if settings.loss == "huber" and settings.value("huber_schedule") == "snr":
        raise ParamsError(
            f"train.huber_schedule is snr, and {kind.name} has no signal-to-noise ratio; choices: constant, exponential"
        )


def _require(config: Config, place: str, names: Sequence[str], objective: str) -> None:
    unsaid = config.get(UNSAID, ())
    missing = [name for name in names if name in unsaid or config.get(name) is None]
    if missing:
        raise DataError(f"{place}: {objective} needs {', '.join(missing)}, which the file does not say")
