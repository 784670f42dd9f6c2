"""A picture of the chosen checkpoint as a short film, by Stable Video Diffusion (Blattmann et al., 2311.15127)."""

import io
from pathlib import Path

import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

from sdlora import determinism, gpu, records
from sdlora.config.animate import Animate
from sdlora.errors import DataError
from sdlora.models.family import default_device
from sdlora.models.loading import from_pretrained, quieten
from sdlora.randomness import generator
from sdlora.stages.animate.recipe import AnimateRecipe
from sdlora.stages.evaluate.run import read_choice
from sdlora.stages.fit.fit import place
from sdlora.stages.sample.parts import reporting
from sdlora.tensors import DTYPES
from sdlora.weights import FILM

FILE = "animation.gif"
HUNDREDTH_S = 10  # what a GIF counts time in, ms


def animate_version(recipe: AnimateRecipe) -> list[Path]:
    """Write `animation.gif` of one picture that the chosen checkpoint drew.

    Raises:
        DataError: If it drew fewer pictures.
        MissingError: If the weights are not there, or need a GPU.
    """
    torch.set_num_threads(recipe.threads)
    settings = recipe.animate
    with Image.open(picture_of(recipe.folder, settings.reference)) as drawn:
        picture = drawn.convert("RGB")
    with gpu.told_when_it_fails(lambda: "a smaller animate.decode_chunk_size, or fewer animate.frames, may fit"):
        frames = frames_of(load(settings), picture, settings)
    out = recipe.folder / FILE
    records.write_bytes(out, as_gif(frames, settings.fps))
    return [out]


def picture_of(result: Path, number: int) -> Path:
    """The picture of reference `number` (from 1) by the chosen checkpoint, of those that report where they are drawn.

    Raises:
        DataError: If there are not as many.
    """
    choice = read_choice(result)
    rows = reporting(result, [choice.step])
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    if number > len(first):
        raise DataError(
            f"animate.reference is {number}, but step {choice.step} of {result.name} drew {len(first)} references"
        )
    return result / str(first[number - 1]["file"])


def load(settings: Animate) -> StableVideoDiffusionPipeline:
    """The pipeline, on a GPU each network when it is its turn.

    Raises:
        MissingError: If the weights are neither local nor reachable, or want a GPU.
    """
    quieten()
    gpu.check_film(settings.dtype, gpu.found())
    dtype = DTYPES[settings.dtype]
    pipeline = from_pretrained(StableVideoDiffusionPipeline, FILM, settings.model, settings.revision, dtype=dtype)
    if default_device() == "cuda":
        pipeline.enable_model_cpu_offload()
    pipeline.set_progress_bar_config(desc="animate", mininterval=5)
    return pipeline


def frames_of(pipeline: StableVideoDiffusionPipeline, picture: Image.Image, settings: Animate) -> list[Image.Image]:
    """The film's frames, of the picture's shape: what it was padded with is cut off again."""
    determinism.choose(True)
    padded, (left, top, width, height) = place(picture, (settings.width_px, settings.height_px), "blur")
    found = pipeline(
        padded,
        width=settings.width_px,
        height=settings.height_px,
        num_frames=settings.frames,
        num_inference_steps=settings.inference_steps,
        min_guidance_scale=settings.min_guidance_scale,
        max_guidance_scale=settings.max_guidance_scale,
        fps=settings.fps,
        motion_bucket_id=settings.motion_bucket_id,
        noise_aug_strength=settings.noise_aug_strength,
        decode_chunk_size=settings.decode_chunk_size,
        generator=generator("animate", settings.seed),
    )
    return [frame.crop((left, top, left + width, top + height)) for frame in found.frames[0]]


def as_gif(frames: list[Image.Image], fps: int) -> bytes:
    """An endless GIF; its time is counted in hundredths of a second."""
    held = io.BytesIO()
    duration = HUNDREDTH_S * max(2, round(100 / fps))
    frames[0].save(held, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)
    return held.getvalue()
