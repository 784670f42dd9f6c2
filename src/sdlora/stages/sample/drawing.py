"""How a picture is drawn: the sampler and its options, clip skip, second prompts, hires fix, decoding.

What a family or a sampler does not have is refused; nothing is left out in silence.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdlora import choices
from sdlora.config.params import Base
from sdlora.config.sample import Hires, Sample
from sdlora.errors import ParamsError
from sdlora.models import ModelFamily

Size = tuple[int, int]  # width and height, px


def check_drawing(settings: Sample, family: type[ModelFamily]) -> None:
    """Refuse what the family's pipelines do not take.

    Raises:
        ParamsError: Names the option and what has it.
    """
    family.sampler(settings.scheduler)
    taken = inspect.signature(family.text2img.__call__).parameters
    if settings.clip_skip is not None and ("clip_skip" not in taken or family.kohya is None):
        raise ParamsError(f"sample.clip_skip is {settings.clip_skip}, which {family.__name__} does not have")
    for option, name in (("second_prompt", "prompt_2"), ("second_negative_prompt", "negative_prompt_2")):
        if getattr(settings, option) is not None and name not in taken:
            raise ParamsError(
                f"sample.{option} is for families with a second text encoder, such as sdxl; {family.__name__} has one"
            )


def check_before_training(settings: Sample, base: Base, size_px: int) -> None:
    """Refuse what could not be drawn with the LoRA: training it would be for nothing.

    Args:
        settings: How it will be drawn.
        base: What draws.
        size_px: Side of what is drawn at first.

    Raises:
        ParamsError: Names the option and what has it, or the sizes.
    """
    family: type[ModelFamily] = choices.pick(choices.FAMILIES, base.family)
    check_drawing(settings, family)
    if settings.clip_skip is not None:
        check_clip_skip(settings.clip_skip, [*family.outline(base, torch.device("cpu")).text_encoders().values()])
    if settings.decode == "tiled":
        tile_side(base, last_side(settings, size_px, 1))


def check_clip_skip(clip_skip: int, encoders: Sequence[Any]) -> None:
    """Refuse to skip more layers than a text encoder has.

    Raises:
        ParamsError: Says how many it has.
    """
    layers = min(encoder.config.num_hidden_layers for encoder in encoders)
    if clip_skip > layers:
        raise ParamsError(f"sample.clip_skip is {clip_skip}, but a text encoder has {layers} layers")


def last_side(settings: Sample, side: int, multiple: int) -> int:
    """Side of the pictures that are kept, px: hires fix enlarges what is drawn at first.

    Args:
        settings: Hires fix, or none.
        side: Of what is drawn at first, px.
        multiple: What sides must be multiples of, px.
    """
    return side if settings.hires is None else round(side * settings.hires.factor / multiple) * multiple


def tile_side(base: Base, side: int) -> int:
    """Side of the tiles in which a picture is decoded, px; neighbours overlap by a quarter.

    Raises:
        ParamsError: If a picture of `side` px is no larger than a tile.
    """
    tile = base.size_px // 2
    if side <= tile:
        raise ParamsError(
            f"sample.decode is tiled, but a picture of {side} px is no larger than a tile, {tile} px (half of the "
            f"base's size_px); choices: whole, sliced"
        )
    return tile


def set_decoding(vae: Any, settings: Sample, base: Base, side: int) -> None:
    """Have the VAE work as `sample.decode` says; diffusers slices and tiles.

    Args:
        vae: Of the base.
        settings: Says how.
        base: Its own side is two tiles long.
        side: Of the pictures that are kept, px.

    Raises:
        ParamsError: If a picture is no larger than a tile.
    """
    if settings.decode == "whole":
        return
    vae.enable_slicing()
    if settings.decode == "tiled":
        vae.tile_sample_min_size = tile = tile_side(base, side)
        vae.tile_latent_min_size = tile // 2 ** (len(vae.config.block_out_channels) - 1)
        vae.enable_tiling()


def sampler_of(settings: Sample, model: ModelFamily) -> Any:
    """The scheduler of diffusers that steps, with the base's own noise levels and the version's options.

    DDIM clips what it predicts to [-1, 1] unless it is told not to, which is right for pixels and not for latents: a
    base whose own scheduler does not clip says nothing of it.
    """
    kind, config = model.sampler(settings.scheduler), model.pipeline.scheduler.config
    options: dict[str, Any] = {"use_karras_sigmas": True} if settings.karras else {}
    if settings.solver_order is not None:
        options["solver_order"] = settings.solver_order
    if "clip_sample" in kind._get_init_keys(kind) and "clip_sample" not in config:
        options["clip_sample"] = False
    return kind.from_config(config, **options)


def told(settings: Sample, model: ModelFamily, texts: Sequence[str]) -> dict[str, Any]:
    """What both pipelines are told about prompts.

    `clip_skip` counts as A1111 and kohya do: 1 is the text encoder's last layer, 2 the one before. diffusers counts
    from the layer that the family reads, which is the last of SD's and the last but one of SDXL's, and skips layers of
    the prompt alone: so the negative prompt's embeddings, of the same layer, are made here.

    Raises:
        ParamsError: If the text encoder has fewer layers, or the family tells its pipeline embeddings of its own.
    """
    found = model.prompting(texts, settings.guidance_scale, settings.negative_prompt)
    count = len(texts)
    more: dict[str, Any] = {}
    for option, name in (("second_prompt", "prompt_2"), ("second_negative_prompt", "negative_prompt_2")):
        if getattr(settings, option) is not None:
            more[name] = [getattr(settings, option)] * count
    if settings.second_negative_prompt is not None:  # diffusers reads it only beside a first one
        found.setdefault("negative_prompt", [settings.negative_prompt] * count)
    if settings.eta:
        more["eta"] = settings.eta
    if settings.clip_skip is not None:
        encoders: list[Any] = [*model.text_encoders().values()]
        check_clip_skip(settings.clip_skip, encoders)
        for encoder in encoders:  # transformers 5 flattened it, diffusers 0.42 asks for its norm
            if not hasattr(encoder, "text_model"):
                encoder.__dict__["text_model"] = encoder
        own = model.kohya.clip_skip if model.kohya else 1
        more["clip_skip"] = None if settings.clip_skip == own else settings.clip_skip - own
    if more.keys() - {"eta"} and "prompt" not in found:
        raise ParamsError(
            f"family {model.base.family} tells its pipeline embeddings of its own, so sample.clip_skip, second_prompt "
            f"and second_negative_prompt would have no effect"
        )
    return _with_negative_skipped({**found, **more}, model)


def _with_negative_skipped(said: dict[str, Any], model: ModelFamily) -> dict[str, Any]:
    """What a pipeline is told, with embeddings in place of negative prompts where layers are skipped."""
    skipped, negative = said.get("clip_skip"), [name for name in said if name.startswith("negative_prompt")]
    zeros = not negative and model.pipeline.config.get("force_zeros_for_empty_prompt")  # SDXL's, where there is none
    if skipped is None or zeros or said["guidance_scale"] <= 1:
        return said
    texts = {name.removeprefix("negative_"): said[name] for name in negative} or {"prompt": [""] * len(said["prompt"])}
    with torch.no_grad():
        found = model.pipeline.encode_prompt(
            **texts, device=model.device, num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=skipped
        )
    embeddings = {"negative_prompt_embeds": found[0]}
    if len(found) > 2:
        embeddings["negative_pooled_prompt_embeds"] = found[2]
    return {**{name: value for name, value in said.items() if name not in negative}, **embeddings}


def hires_steps(settings: Sample, hires: Hires) -> int:
    """The steps diffusers is told in image to image, of which it runs int(steps x strength).

    diffusers' meaning (`share`): a share of `inference_steps` is run. A1111's (`all`): all of them are, over the same
    share of the noise; `sd_samplers_common.setup_img2img_steps` (1.10.1) divides by the strength likewise.
    """
    if hires.steps == "share":
        return settings.inference_steps
    steps = math.ceil(settings.inference_steps / hires.denoising_strength)
    while int(steps * hires.denoising_strength) < settings.inference_steps:  # rounding
        steps += 1
    return steps


def enlarged(drawn: Any, hires: Hires, size: Size, model: ModelFamily) -> Any:
    """What image to image starts from: pictures (Lanczos), or latents (bilinear, A1111's `Latent`).

    Args:
        drawn: Pictures, or latents (B, C, h, w) where the upscaling is `latent`.
        hires: Its settings.
        size: The size wanted.
        model: Whose latents they are.
    """
    if hires.upscale == "lanczos":
        images: Sequence[Image.Image] = drawn
        return [image.resize(size, Image.Resampling.LANCZOS) for image in images]
    latents: Tensor = drawn
    cell = model.pipeline.vae_scale_factor
    shape = (size[1] // cell, size[0] // cell)
    return torch.nn.functional.interpolate(latents.float(), shape, mode="bilinear").to(latents.dtype)
