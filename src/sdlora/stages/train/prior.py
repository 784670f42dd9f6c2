"""Prior preservation: pictures of the class as the base draws it, made once for a run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdlora import tensors
from sdlora.config.params import Base
from sdlora.config.sample import Sample
from sdlora.config.train import Prior
from sdlora.flow import store
from sdlora.models import ModelFamily
from sdlora.progress import Progress
from sdlora.randomness import generator
from sdlora.stages.train import texts
from sdlora.stages.train.dataset import Example

INFERENCE_STEPS, GUIDANCE_SCALE = 30, 7.0
KEPT_SETS = 20


def examples(model: ModelFamily, settings: Prior, identity: str, seed: int, base: Base) -> list[Example]:
    """Latents of `settings.pictures` pictures that the base draws of `settings.prompt`.

    Args:
        model: The base, before any LoRA.
        settings: Prompt and number.
        identity: Which weights the base has; part of the name the latents are kept under.
        seed: The run's.
        base: Says the side of the pictures, and how much guidance it is drawn with.

    Returns:
        One example a picture, captioned by the prompt.
    """
    guidance = base.guiding(Sample(guidance_scale=GUIDANCE_SCALE)).guidance_scale
    asked = {"prompt": settings.prompt, "pictures": settings.pictures, "seed": seed, "size_px": base.size_px}
    asked |= {"guidance_scale": guidance}
    folder = store.entry("prior", texts.key_of(model, identity, Path(__file__), asked))
    found = []
    with store.sole_use(folder, wait=True):
        for number, latents in enumerate(_latents(model, settings, folder, seed, base.size_px, guidance)):
            found.append(Example(f"prior-{number:04d}", (latents["mean"],), (latents["std"],), (settings.prompt,)))
    store.keep_newest("prior", KEPT_SETS)
    return found


def _latents(
    model: ModelFamily, settings: Prior, folder: Path, seed: int, size_px: int, guidance: float
) -> Iterator[dict[str, Tensor]]:
    progress = Progress("prior", settings.pictures)
    for number in range(settings.pictures):
        path = folder / f"{number:04d}.safetensors"
        if not tensors.is_whole(path):
            picture = model.pipeline(
                **model.prompting([settings.prompt], guidance, None), height=size_px, width=size_px,
                num_inference_steps=INFERENCE_STEPS, generator=generator("prior", seed, number),
            ).images[0]  # fmt: skip
            pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32)).permute(2, 0, 1)[None]
            mean, std = model.encode_images(pixels / 127.5 - 1)
            tensors.write(path, {"mean": mean[0].cpu(), "std": std[0].cpu()})
        progress.advance()
        yield tensors.read(path)
