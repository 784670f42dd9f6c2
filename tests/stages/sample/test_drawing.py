"""The drawing menu: what each option changes, by plain diffusers, and what is refused."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from operations import Operations
from PIL import Image
from pydantic import ValidationError
from training import small_base, trained

from sdlora import choices
from sdlora.config.params import Base
from sdlora.config.sample import Hires, Sample
from sdlora.errors import ParamsError
from sdlora.lora.names import FILE_NAME
from sdlora.models import load_model
from sdlora.randomness import generator
from sdlora.stages.sample.drawing import check_before_training, sampler_of, told
from sdlora.stages.sample.sample import Painter, Prompt

PROMPT = Prompt("001", "captain, red background", 42)
#: Settings, and what plain diffusers is told for them.
SAMPLERS: list[tuple[dict[str, Any], str, dict[str, Any], dict[str, Any]]] = [
    ({"scheduler": "ddim"}, "DDIMScheduler", {}, {}),
    ({"scheduler": "ddim", "eta": 0.8}, "DDIMScheduler", {}, {"eta": 0.8}),
    ({"scheduler": "euler"}, "EulerDiscreteScheduler", {}, {}),
    ({"scheduler": "euler_a"}, "EulerAncestralDiscreteScheduler", {}, {}),
    ({"scheduler": "dpmpp_2m"}, "DPMSolverMultistepScheduler", {}, {}),
    ({"scheduler": "dpmpp_2m", "karras": True}, "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {}),
    ({"scheduler": "unipc"}, "UniPCMultistepScheduler", {}, {}),
    ({"scheduler": "unipc", "solver_order": 1}, "UniPCMultistepScheduler", {"solver_order": 1}, {}),
    ({"clip_skip": 2, "guidance_scale": 1.0}, "DDIMScheduler", {}, {"clip_skip": 1, "guidance_scale": 1.0}),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def drawn(base: Base | None = None, **options: Any) -> Image.Image:
    painter = Painter(base or small_base(), Sample(**{"inference_steps": 3, **options}), 64)
    painter.use(None)
    return painter.draw([PROMPT])[0]


@pytest.mark.slow
def test_every_sampler_is_diffusers_own_and_unlike_the_others() -> None:
    pipeline = load_model(small_base(), "cpu").pipeline
    pipeline.text_encoder.__dict__["text_model"] = pipeline.text_encoder
    config, seen = pipeline.scheduler.config, set()
    for settings, name, options, more in SAMPLERS:
        pipeline.scheduler = getattr(diffusers, name).from_config(config, **options)
        noise = generator("sample", PROMPT.seed, PROMPT.reference)
        (theirs,) = pipeline(
            PROMPT.text, num_inference_steps=3, height=64, width=64, generator=[noise],
            **{"negative_prompt": "", "guidance_scale": 7.0, **more},
        ).images  # fmt: skip
        ours = drawn(**settings)
        assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1, settings
        seen.add(ours.tobytes())
    assert len(seen) == len(SAMPLERS), "every option changes the picture"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"karras": True}, "karras has no effect with scheduler: ddim; it is for euler, dpmpp_2m, unipc"),
        ({"karras": True, "scheduler": "euler_a"}, "karras has no effect with scheduler: euler_a"),
        ({"eta": 0.5, "scheduler": "euler"}, "eta has no effect with scheduler: euler; it is for ddim"),
        ({"solver_order": 2, "scheduler": "dpmpp_2m"}, "solver_order has no effect with scheduler: dpmpp_2m"),
        ({"scheduler": "dpm"}, "'dpm' is not on the menu"),
    ],
)
def test_an_option_that_a_sampler_does_not_have_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Sample(**options)


def test_hires_runs_a_share_of_the_steps_or_all_of_them_on_pictures_or_latents() -> None:
    seen, calls = set(), []
    for steps, upscale, expected in (("share", "lanczos", 3 + 1), ("all", "latent", 3 + 3), ("share", "latent", 3 + 1)):
        hires = Hires(factor=1.5, denoising_strength=0.6, steps=steps, upscale=upscale)
        painter = Painter(small_base(), Sample(inference_steps=3, hires=hires), 64)
        painter.use(None)
        denoiser = painter._adapter.denoiser  # type: ignore[union-attr]
        calls.clear()
        denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
        (image,) = painter.draw([PROMPT])
        assert len(calls) == expected and image.size == (96, 96)
        seen.add(image.tobytes())
    assert len(seen) == 3


def test_sdxl_counts_its_layers_as_a1111_does_and_has_second_prompts(small_sdxl: Base) -> None:
    model = load_model(small_sdxl, "cpu")
    assert told(Sample(clip_skip=2), model, ["a"])["clip_skip"] is None, "SDXL's own"
    assert told(Sample(clip_skip=1), model, ["a"])["clip_skip"] == -1
    pictures = [
        drawn(small_sdxl, inference_steps=2, scheduler="euler", **options).tobytes()
        for options in ({}, {"second_prompt": "a hat"}, {"second_negative_prompt": "a hat"}, {"clip_skip": 1})
    ]
    assert len(set(pictures)) == 4


@pytest.mark.parametrize(("family", "layers"), [("sd", 2), ("sdxl", 1)])
def test_layers_are_skipped_of_the_negative_prompt_too(family: str, layers: int, small_sdxl: Base) -> None:
    """As in A1111; so a negative prompt that is the prompt guides nowhere."""
    base = small_sdxl if family == "sdxl" else small_base()
    options = {"inference_steps": 2, "clip_skip": layers}
    alone = drawn(base, **options, guidance_scale=1.0)
    same = drawn(base, **options, negative_prompt=PROMPT.text)
    assert np.abs(pixels(alone) - pixels(same)).max() <= 1
    assert np.abs(pixels(alone) - pixels(drawn(base, **options, negative_prompt="a hat"))).max() > 1
    hires = Hires(factor=1.5, denoising_strength=0.6)
    assert drawn(base, **options, negative_prompt="a hat", hires=hires).size == (96, 96)


def test_sdxl_without_a_negative_prompt_is_guided_away_from_zeros(small_sdxl: Base) -> None:
    """What it was trained with; an empty text is another thing, and a second negative prompt is not lost."""
    options = {"inference_steps": 2, "scheduler": "euler"}
    pipeline = load_model(small_sdxl, "cpu").pipeline
    noise = generator("sample", PROMPT.seed, PROMPT.reference)
    (theirs,) = pipeline(
        PROMPT.text, guidance_scale=7.0, num_inference_steps=2, height=64, width=64, generator=[noise]
    ).images
    assert np.abs(pixels(drawn(small_sdxl, **options)) - pixels(theirs)).max() <= 1
    others = [drawn(small_sdxl, **options, second_negative_prompt=text) for text in ("", "a hat")]
    assert len({picture.tobytes() for picture in (theirs, *others)}) == 3


def test_latents_are_clipped_only_by_a_base_that_says_so(small_sdxl: Base) -> None:
    """A base saved with another sampler says nothing of it, and diffusers' DDIM clips unless it is told not to."""
    model = load_model(small_sdxl, "cpu")
    assert "clip_sample" not in model.pipeline.scheduler.config
    assert sampler_of(Sample(scheduler="ddim"), model).config.clip_sample is False
    model.pipeline.scheduler = diffusers.DDIMScheduler(clip_sample=True)
    assert sampler_of(Sample(scheduler="ddim"), model).config.clip_sample is True


def test_what_is_kept_in_fp32_stays_so_in_image_to_image(small_sd3: Base) -> None:
    """transformers keeps the end of T5's feed-forward layers in fp32 beside fp16, which would overflow."""
    model = load_model(small_sd3, "cpu")
    model.pipeline.to(dtype=torch.bfloat16)
    ends = [p for name, p in model.pipeline.text_encoder_3.named_parameters() if ".wo." in name]
    for end in ends:
        end.data = end.data.float()
    pipeline = model.img2img_pipeline()
    assert ends and all(end.dtype == torch.float32 for end in ends)
    assert pipeline.transformer is model.denoiser and pipeline.transformer.dtype == torch.bfloat16
    assert pipeline.vae_scale_factor == model.pipeline.vae_scale_factor


def test_what_a_family_does_not_have_is_refused(small_sd3: Base) -> None:
    with pytest.raises(ParamsError, match=r"sample\.second_prompt is for families with a second text encoder"):
        drawn(second_prompt="a hat")
    with pytest.raises(ParamsError, match="clip_skip is 5, but a text encoder has 2 layers"):
        drawn(clip_skip=5)
    with pytest.raises(ParamsError, match="clip_skip is 5, but a text encoder has 2 layers"):
        check_before_training(Sample(clip_skip=5), small_base(), 64)
    with pytest.raises(ValueError, match="inference_steps are that share of 1429; a schedule has 1000"):
        Sample(inference_steps=500, hires=Hires(steps="all", denoising_strength=0.35))
    with pytest.raises(ParamsError, match="clip_skip is 2, which StableDiffusion3 does not have"):
        drawn(small_sd3, scheduler="flow_euler", clip_skip=2)


@pytest.mark.usefixtures("clip_skip_on_the_menu")
def test_a_family_that_tells_embeddings_cannot_skip() -> None:
    with pytest.raises(ParamsError, match="tells its pipeline embeddings of its own"):
        drawn(small_base().model_copy(update={"family": "clip-skip"}), clip_skip=1)


def pixels(image: Image.Image) -> Any:
    return np.asarray(image, int)


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoRA of every type, and one on the text encoder too, strong enough to be seen."""
    found = {}
    kinds: dict[str, dict[str, Any]] = {name: {"lora_type": name} for name in choices.LORA_TYPES}
    for name in ("loha", "lokr"):
        kinds[name]["learning_rate"] = 0.1  # their products of small factors grow slowly
    for name, options in {**kinds, "text": {"text_encoder": {"learning_rate": 1e-2}}, "second": {"seed": 7}}.items():
        folder = tmp_path_factory.mktemp(name)
        trained(folder, small_base(), **options)
        found[name] = folder / FILE_NAME
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [*choices.LORA_TYPES, "text"])
def test_a_fused_lora_draws_the_same_picture_with_fewer_operations(name: str, loras: dict[str, Path]) -> None:
    drawn, counts = {}, {}
    for fuse in (False, True):
        painter = Painter(small_base(), Sample(inference_steps=3, fuse_lora=fuse), 64)
        painter.use(None)
        (drawn["base", fuse],) = painter.draw([PROMPT])
        painter.use(loras["second"])
        painter.draw([PROMPT])
        painter.use(loras[name])
        with Operations() as operations:
            (drawn[name, fuse],) = painter.draw([PROMPT])
        counts[fuse] = operations.seen.total()
        painter.use(None)
        assert painter.draw([PROMPT])[0].tobytes() == drawn["base", fuse].tobytes(), "not a bit of it is left"
    assert drawn["base", True].tobytes() == drawn["base", False].tobytes()
    assert np.abs(pixels(drawn[name, True]) - pixels(drawn[name, False])).max() <= 1
    assert np.abs(pixels(drawn[name, True]) - pixels(drawn["base", True])).max() > 8
    assert counts[True] < counts[False]


@pytest.mark.slow
def test_fused_into_half_weights_it_moves_pictures_about_as_much_as_their_type_does(loras: dict[str, Path]) -> None:
    found = {}
    for dtype, fuse in (("fp32", False), ("bf16", False), ("bf16", True)):
        base = small_base().model_copy(update={"dtype": dtype})
        painter = Painter(base, Sample(inference_steps=3, fuse_lora=fuse), 64)
        painter.use(loras["lora"])
        found[dtype, fuse] = pixels(painter.draw([PROMPT])[0])
    exact = found.pop(("fp32", False))
    plain, fused = (np.abs(image - exact).mean() for image in found.values())
    assert fused < 2 * plain


def decoded(decode: str, side: int = 64) -> tuple[list[Image.Image], list[torch.Size]]:
    """Two pictures, and what the decoder was given."""
    painter = Painter(small_base(), Sample(inference_steps=3, batch_size=2, decode=decode), side)
    painter.use(None)
    shapes: list[torch.Size] = []
    decoder = painter._adapter.pipeline.vae.decoder  # type: ignore[union-attr]
    decoder.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    return painter.draw([PROMPT, Prompt("002", "captain", 42)]), shapes


def test_pictures_are_decoded_at_once_one_by_one_or_in_tiles() -> None:
    whole, at_once = decoded("whole")
    sliced, one_by_one = decoded("sliced")
    tiled, tiles = decoded("tiled")
    assert at_once == [(2, 4, 16, 16)] and one_by_one == [(1, 4, 16, 16)] * 2
    assert max(shape[-1] for shape in tiles) == 8 and {shape[0] for shape in tiles} == {1}
    for one, other, third in zip(whole, sliced, tiled, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
        difference = np.abs(pixels(one) - pixels(third))
        assert one.size == third.size and 0 < difference.mean() < 16


def test_decoding_in_parts_that_has_no_effect_is_refused() -> None:
    with pytest.raises(ValidationError, match="decode: sliced has no effect with batch_size: 1"):
        Sample(decode="sliced")
    with pytest.raises(ParamsError, match="a picture of 32 px is no larger than a tile, 32 px"):
        decoded("tiled", 32)
