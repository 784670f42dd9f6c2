"""Losses, weights, noises and the average, against their definitions."""

import numpy as np
import pytest
import torch
from benchmarks.fake_card import CUDA, Traffic, on_a_card
from diffusers import DDPMScheduler
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sdlora.config.train import Ema, Train
from sdlora.stages.train import ema, losses, noise

SCHEDULE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
ABAR = (1 - BETAS).cumprod(0)
SNR = ABAR / (1 - ABAR)
PLAIN = Train()


def test_snr_of_the_schedule() -> None:
    assert float(SNR[0]) == pytest.approx(1175.47, abs=0.01)
    assert float(SNR[999]) == pytest.approx(0.0046819, abs=1e-6)
    assert int((SNR < 5).nonzero()[0]) == 147
    assert int((SNR < 1).nonzero()[0]) == 354
    rounded = SCHEDULE.alphas_cumprod.double()  # what a run computes with: diffusers' fp32 table
    assert torch.allclose(rounded / (1 - rounded), SNR, rtol=1e-4)


@pytest.mark.parametrize(
    ("gamma", "epsilon", "velocity"), [(5.0, 0.9166, 0.2943), (1.0, 0.7667, 0.1781), (20.0, 0.9741, 0.3479)]
)
def test_min_snr_means(gamma: float, epsilon: float, velocity: float) -> None:
    settings = Train(weighting="min_snr", snr_gamma=gamma)
    assert float(losses.min_snr(SNR, "epsilon", settings).mean()) == pytest.approx(epsilon, abs=1e-4)
    assert float(losses.min_snr(SNR, "v_prediction", settings).mean()) == pytest.approx(velocity, abs=1e-4)


def test_min_snr_bears_a_zero_terminal_snr() -> None:
    zero = torch.zeros(1)
    settings = Train(weighting="min_snr")
    assert float(losses.min_snr(zero, "epsilon", settings)) == 1.0
    assert float(losses.min_snr(zero, "v_prediction", settings)) == 0.0


def test_soft_min_snr_is_below_min_snr_and_meets_it_far_away() -> None:
    hard, soft = Train(weighting="min_snr"), Train(weighting="soft_min_snr")
    for kind in ("epsilon", "v_prediction"):
        ratio = losses.soft_min_snr(SNR, kind, soft) / losses.min_snr(SNR, kind, hard)
        assert float(ratio.max()) < 1.0
        assert float(ratio.min()) == pytest.approx(0.5, abs=1e-2)  # at SNR = gamma
        assert float(ratio[999]) > 0.99
        assert float(ratio[0]) > 0.99


def test_debiased() -> None:
    settings = Train(weighting="debiased")
    weights = losses.debiased(SNR, "epsilon", settings)
    assert float(weights.mean()) == pytest.approx(3.02, abs=0.01)
    assert float(weights.max()) == pytest.approx(14.6, abs=0.02)
    assert torch.allclose(losses.debiased(SNR, "v_prediction", settings), 1 / (SNR + 1))


def _huber(difference: float, timestep: int, **options: object) -> float:
    settings = Train(loss="huber", **options)
    one, zero = torch.full((1, 1, 1, 1), difference), torch.zeros(1, 1, 1, 1)
    return float(losses.huber(one, zero, SNR[timestep].float().view(1), torch.tensor([timestep]), settings))


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_huber_sends_no_number_to_a_card(schedule: str) -> None:
    """The CPU would wait for it in every step."""
    settings = Train(loss="huber", huber_schedule=schedule)
    with on_a_card(), FakeTensorMode(), Traffic() as traffic:
        one, steps = torch.ones(2, 4, 8, 8, device=CUDA), torch.ones(2, dtype=torch.long, device=CUDA)
        losses.huber(one, one, one[:, 0, 0, 0], steps, settings)
    assert (traffic.copies, traffic.waits) == (0, 0) and traffic.operations


def test_huber_is_a_square_for_small_and_a_line_for_large_differences() -> None:
    constant = {"huber_schedule": "constant", "huber_c": 0.1}
    assert _huber(1e-2, 500, **constant) == pytest.approx(1e-4, rel=0.01)
    assert _huber(100.0, 500, **constant) == pytest.approx(2 * 0.1 * (100 - 0.1), rel=1e-3)
    # its threshold falls with the noise: a large difference costs less at a late timestep
    for schedule in ("exponential", "snr"):
        assert _huber(10.0, 900, huber_schedule=schedule) < 0.5 * _huber(10.0, 0, huber_schedule=schedule)
    assert _huber(10.0, 900, huber_schedule="exponential") != _huber(10.0, 900, huber_schedule="snr")


def test_masked_mean_ignores_what_the_mask_hides() -> None:
    error = torch.rand(2, 4, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5] = 1
    assert torch.allclose(losses.masked_mean(error, mask), error[:, :, 2:5].mean(dim=(1, 2, 3)))
    assert torch.allclose(losses.masked_mean(error, None), error.mean(dim=(1, 2, 3)))


def _many(settings: Train, count: int = 4000, side: int = 8) -> torch.Tensor:
    source = torch.Generator().manual_seed(3)
    return torch.stack(
        [noise.shaped(torch.randn(4, side, side, generator=source), source, settings)[0] for _ in range(count)]
    )


def test_noise_offset_adds_its_variance_and_only_to_the_mean() -> None:
    drawn = _many(Train(noise=("offset",), noise_offset=0.3))
    assert float(drawn.var()) == pytest.approx(1 + 0.3**2, rel=0.02)
    means = drawn.mean(dim=(2, 3))
    assert float(means.var()) == pytest.approx(0.3**2 + 1 / 64, rel=0.05)
    assert abs(np.corrcoef(means.numpy().T)[0, 1]) < 0.05  # every channel has its own


def test_pyramid_noise_has_unit_variance_per_sample_and_more_low_frequencies() -> None:
    settings = Train(noise=("pyramid",), pyramid_discount=0.6)
    drawn = _many(settings, 300, 16)
    assert torch.allclose(drawn.std(dim=(1, 2, 3)), torch.ones(300), atol=1e-5)
    assert float(drawn.mean(dim=(2, 3)).var()) > 3 / 256


def test_pyramid_noise_does_not_depend_on_the_batch() -> None:
    settings = Train(noise=("pyramid",))
    gaussian = torch.randn(4, 16, 16)
    first = noise.shaped(gaussian, torch.Generator().manual_seed(7), settings)[0]
    torch.randn(100)  # the global generator is not used
    assert torch.equal(first, noise.shaped(gaussian, torch.Generator().manual_seed(7), settings)[0])
    fewer = noise.shaped(gaussian, torch.Generator().manual_seed(7), Train(noise=("pyramid",), pyramid_iterations=1))[0]
    assert not torch.equal(first, fewer)


def test_input_perturbation_leaves_the_target() -> None:
    gaussian = torch.randn(4, 64, 64)
    target, mixed = noise.shaped(gaussian, torch.Generator().manual_seed(1), Train(input_perturbation=0.1))
    assert torch.equal(target, gaussian)
    assert float((mixed - gaussian).std()) == pytest.approx(0.1, rel=0.03)


def test_the_average_is_the_hand_made_one() -> None:
    settings = Ema(decay=0.9, update_every=1)
    parameter = nn.Parameter(torch.zeros(3))
    average, by_hand = [torch.zeros(3)], torch.zeros(3)
    for step in range(1, 31):
        parameter.data += torch.rand(3)
        ema.update(settings, average, [parameter], step)
        decay = min(0.9, step / (9 + step))
        by_hand = decay * by_hand + (1 - decay) * parameter.detach()
    assert torch.allclose(average[0], by_hand, atol=1e-6)


def test_the_average_warms_up_within_a_short_run() -> None:
    assert ema.decay_at(Ema(decay=0.999), 0) == pytest.approx(0.1)
    assert ema.decay_at(Ema(decay=0.999), 990) == pytest.approx(0.991)
    assert ema.decay_at(Ema(decay=0.995), 5000) == 0.995
    # seldom updates keep the same memory
    assert ema.decay_at(Ema(decay=0.995, update_every=5), 5000) == pytest.approx(0.995**5)
