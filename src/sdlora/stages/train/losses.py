"""Losses of the prediction, and weights of a timestep's loss.

A loss gives (B, C, h, w), a weighting (B,): the loop takes the mean over each picture, multiplies by
its timestep's weight and takes the mean over the batch. `snr` is abar / (1 - abar) of each sample,
NaN for an objective that has none.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sdlora.config.train import Train

DEBIASED_CAP = 1000.0
Weighting = Callable[[Tensor, str, Train], Tensor]


def of_snr(weighting: Weighting) -> Weighting:
    """Mark a weighting as one that needs the signal-to-noise ratio: objectives without one refuse it."""
    weighting.__dict__["needs_snr"] = True
    return weighting


def mse(prediction: Tensor, target: Tensor, snr: Tensor, timesteps: Tensor, settings: Train) -> Tensor:
    """Squared error, elementwise."""
    return (prediction - target).square()


def huber(prediction: Tensor, target: Tensor, snr: Tensor, timesteps: Tensor, settings: Train) -> Tensor:
    """Pseudo-Huber loss with a scheduled threshold (Khrapov et al., arXiv 2403.16728).

    2 c (sqrt(d^2 + c^2) - c): d^2 for small differences d, 2 c |d| for large ones. `constant` keeps c;
    `exponential` lets it fall from 1 at t = 0 to c at t = 1000; `snr` is (1 - c) / (1 + sigma)^2 + c with
    sigma = 1 / sqrt(snr).
    """
    c = settings.value("huber_c")
    schedule = settings.value("huber_schedule")
    if schedule == "exponential":
        threshold = torch.full_like(snr, c).pow(timesteps.float() / 1000)
    elif schedule == "snr":
        threshold = (1 - c) / (1 + snr.rsqrt()).square() + c
    else:
        threshold = torch.full_like(snr, c)
    threshold = threshold.view(-1, 1, 1, 1)
    return 2 * threshold * (((prediction - target).square() + threshold.square()).sqrt() - threshold)


def unweighted(snr: Tensor, prediction_type: str, settings: Train) -> Tensor:
    """1 for every timestep."""
    return torch.ones_like(snr)


@of_snr
def min_snr(snr: Tensor, prediction_type: str, settings: Train) -> Tensor:
    """Min-SNR-gamma (Hang et al., arXiv 2303.09556, eq. 7): min(SNR, gamma) / SNR for a noise
    prediction, / (SNR + 1) for a velocity. An SNR of 0 weighs 1 and 0."""
    gamma: float = settings.value("snr_gamma")
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1.0)


@of_snr
def soft_min_snr(snr: Tensor, prediction_type: str, settings: Train) -> Tensor:
    """Soft-Min-SNR (Crowson et al., arXiv 2401.11605, section 4.4): SNR gamma / (SNR + gamma) in place
    of min(SNR, gamma)."""
    gamma: float = settings.value("snr_gamma")
    if prediction_type == "v_prediction":
        return snr * gamma / (snr + gamma) / (snr + 1)
    return gamma / (snr + gamma)


@of_snr
def debiased(snr: Tensor, prediction_type: str, settings: Train) -> Tensor:
    """Debiased estimation (Yu et al., arXiv 2310.08442): 1 / sqrt(min(SNR, 1000)) for a noise
    prediction; 1 / (SNR + 1) for a velocity, as kohya's trainer has it."""
    if prediction_type == "v_prediction":
        return 1 / (snr + 1)
    return snr.clamp(max=DEBIASED_CAP).rsqrt()


def masked_mean(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of each sample over the cells that are learnt.

    Args:
        error: (B, C, h, w).
        mask: (B, 1, h, w), weights in [0, 1], not all zero in any sample; None weighs all cells alike.

    Returns:
        (B,). Cells of weight 0 have no part in it: their gradient is exactly zero.
    """
    if mask is None:
        return error.mean(dim=(1, 2, 3))
    return (error * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) * error.shape[1])
