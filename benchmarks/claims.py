"""What a write-up of LoRA training claims, and what this machine says."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure import seconds_a_step, start
from benchmarks.rows import changed, menu_of
from sdlora.config.params import Base
from sdlora.config.train import Train
from sdlora.stages.train.batch import draw_batch
from sdlora.stages.train.loop import Run, optimizer_step

Results = list[dict[str, Any]]
HELD_DRAWS = 16  # (picture, noise, timestep) that no training step sees
CLAIMS = {
    "cache": "caching latents makes training 3–5× faster",
    "prodigy": "Prodigy reaches the same loss 20–30 % faster than AdamW",
    "pyramid": "pyramid noise is 10–15 % slower",
    "ema": "EMA costs nothing",
    "min_snr": "min-SNR gives a better model",
}


def _speed(results: Results, base: str, group: str, name: str) -> dict[str, Any] | None:
    found = [r for r in results if r["base"] == base and name in r["name"] and r["group"].startswith(group)]
    return next((r for r in found if r["ratio"] != ""), None)


def measured(results: Results, base: str, losses: Mapping[str, str]) -> dict[str, str]:
    """What each claim measured on a base; empty where this version or this run did not measure it."""
    uncached = _speed(results, base, "cache", "VAE and text encoders every step")
    pyramid, ema = _speed(results, base, "noise", "pyramid"), _speed(results, base, "ema", "")
    found = dict.fromkeys(CLAIMS, "")
    if uncached:
        found["cache"] = f"{1 / float(uncached['ratio']):.2f}×"
    if pyramid:
        found["pyramid"] = f"{100 * (1 / float(pyramid['ratio']) - 1):+.1f} % time a step"
    if ema:
        found["ema"] = f"{100 * (1 / float(ema['ratio']) - 1):+.1f} % time a step"
    return {**found, **losses}


def held_loss(run: Run) -> float:
    """Plain squared error of the prediction on fixed draws: comparable between losses and optimizers."""
    errors = []
    with torch.no_grad():
        for draw in range(HELD_DRAWS):
            batch = draw_batch(run, 10**6 + draw, 0)
            noisy = run.objective.add_noise(batch.latents, batch.noise, batch.timesteps).to(run.model.dtype)
            with run.accelerator.autocast():
                predicted = run.model.predict(noisy, batch.timesteps, batch.conditioning)
            target = run.objective.target(batch.latents, batch.noise, batch.timesteps)
            errors.append(nn.functional.mse_loss(predicted.float(), target).item())
    return statistics.fmean(errors)


def curve(settings: Train, base: Base, folder: Path, steps: int) -> tuple[list[float], float]:
    """Held loss every tenth of the steps, and seconds a step."""
    run, _ = start(settings, base, folder)
    losses, times, every = [held_loss(run)], [], max(1, steps // 10)
    for first in range(1, steps + 1, every):
        count = min(every, steps + 1 - first)
        times.append(seconds_a_step(lambda step, first=first: optimizer_step(run, first + step - 1), count))
        losses.append(held_loss(run))
    return losses, statistics.median(times)


def loss_claims(baseline: Train, base: Base, folder: Path, steps: int) -> dict[str, str]:
    """The claims about the loss, for the entries that the menus have."""
    found: dict[str, str] = {}
    optimizers, weightings = menu_of("optimizer") or {}, menu_of("weighting") or {}
    snr = next((name for name in weightings if "snr" in name and "soft" not in name), None)
    if steps < 1 or ("prodigy" not in optimizers and snr is None):
        return found
    plain, plain_s = curve(baseline, base, folder, steps)
    if "prodigy" in optimizers:
        other = changed(baseline, {"optimizer": "prodigy", "learning_rate": 1.0})
        values, seconds = curve(other, base, folder, steps)
        reached = next((number for number, value in enumerate(values) if value <= plain[-1]), None)
        every = max(1, steps // 10)
        if reached is None:
            found["prodigy"] = f"not reached in {steps} steps (held loss {values[-1]:.4f}, AdamW {plain[-1]:.4f})"
        else:
            share = reached * every * seconds / (steps * plain_s)
            found["prodigy"] = f"{100 * (share - 1):+.0f} % time to AdamW's held loss of step {steps}"
    if snr is not None:
        values, _ = curve(changed(baseline, {"weighting": snr}), base, folder, steps)
        found["min_snr"] = f"held loss {values[-1]:.4f}, plain {plain[-1]:.4f}, before training {plain[0]:.4f}"
    return found
