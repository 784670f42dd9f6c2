"""The base with a checkpoint on it, asked what training asks: for metrics that no picture shows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdlora import determinism
from sdlora.config.params import Base
from sdlora.config.train import Train
from sdlora.flow.hashing import sha256_text
from sdlora.lora.attach import attach_lora, detach_lora
from sdlora.lora.names import EMBEDDINGS
from sdlora.lora.pivotal import attach_embeddings, detach_embeddings, with_token
from sdlora.models import load_model
from sdlora.randomness import generator
from sdlora.stages.evaluate.metric import Floats, Pixels

LEVELS = 8  # noise levels a picture is asked at


class Learner:
    """A base, and the LoRA of one checkpoint after the other."""

    def __init__(self, base: Base, lora_scale: float, threads: int) -> None:
        torch.set_num_threads(threads)
        determinism.choose(deterministic=True)
        self.model, self._scale = load_model(base), lora_scale
        self.objective = self.model.objective(Train())
        self._trigger: str | None = None

    def use(self, lora: Path | None) -> None:
        """Put a LoRA in the place of the one before; None is the base alone."""
        pipeline = self.model.pipeline
        detach_lora(pipeline)
        if self._trigger is not None:
            detach_embeddings(pipeline, self._trigger)
            self._trigger = None
        if lora is not None:
            attach_lora(pipeline, lora, self._scale)
            self.model.speed.lora_added(self.model.denoiser)
            if (lora.parent / EMBEDDINGS).exists():
                self._trigger = attach_embeddings(pipeline, lora.parent / EMBEDDINGS)

    @torch.no_grad()
    def losses(self, pictures: Sequence[Pixels], prompts: Sequence[str]) -> Floats:
        """Mean squared error of each picture's prediction, over noise and levels that depend on the picture alone.

        Args:
            pictures: (H, W, 3) uint8 each, at the base's size.
            prompts: What each is called by.
        """
        known: dict[str, float] = {}
        values = []
        for picture, prompt in zip(pictures, prompts, strict=True):
            key = sha256_text(picture.tobytes().hex() + prompt)
            if key not in known:
                known[key] = self._loss(picture, prompt)
            values.append(known[key])
        return np.array(values)

    def _loss(self, picture: Pixels, prompt: str) -> float:
        source = generator("validation", sha256_text(picture.tobytes().hex()))
        model, device = self.model, self.model.device
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        mean, _ = model.encode_images(pixels)
        latents = mean.expand(LEVELS, -1, -1, -1)
        noise = torch.randn(latents.shape, generator=source).to(device)
        timesteps = self.objective.timesteps(source, LEVELS).to(device)
        told = model.encode_prompts([prompt if self._trigger is None else with_token(prompt, self._trigger)])
        conditioning = {name: value.expand(LEVELS, *value.shape[1:]) for name, value in told.items()}
        noisy = self.objective.add_noise(latents, noise, timesteps)
        target = self.objective.target(latents, noise, timesteps)
        predicted: Tensor = model.predict(noisy.to(model.dtype), timesteps, conditioning)
        return float((predicted.float() - target.float()).square().mean())
