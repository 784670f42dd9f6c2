"""The section `sample`: how pictures are sampled."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdlora import choices
from sdlora.config.sections import Section, on_menu


class Hires(Section):
    """Hires fix: enlarge the picture and denoise it again (image to image)."""

    factor: float = Field(1.5, gt=1, le=4, description="enlargement of each side")
    denoising_strength: float = Field(0.35, gt=0, lt=1, description="share of the schedule that is run again")
    steps: Literal["share", "all"] = Field(
        "share",
        description="share: inference_steps x denoising_strength are run (diffusers); all: inference_steps, over the "
        "same share of the noise (A1111)",
    )
    upscale: Literal["lanczos", "latent"] = Field(
        "lanczos",
        description="what is enlarged: the picture (Lanczos), or its latents (bilinear; for a strength of 0.5 or more)",
    )


MOST_STEPS = 1000  # of a schedule
#: Options of some samplers: option -> the samplers that have it.
SAMPLER_OPTIONS = {"karras": ("euler", "dpmpp_2m", "unipc"), "eta": ("ddim",), "solver_order": ("unipc",)}


class Sample(Section):
    """Pictures sampled, one for each reference and seed: few at every checkpoint, more at the chosen one."""

    weights: Literal["raw", "ema"] = Field("raw", description="the LoRA as trained, or its average (train.ema)")
    lora_scale: float = Field(1.0, ge=0, le=4, description="strength of the LoRA")
    fuse_lora: bool = Field(
        False,
        description="add the LoRA to the base's weights while sampling: fewer operations, sums are rounded once more",
    )
    guidance_scale: float = Field(7.0, ge=1, le=50, description="classifier-free guidance (CFG)")
    inference_steps: int = Field(30, ge=1, le=MOST_STEPS, description="denoising steps")
    scheduler: str = Field("ddim", description="the sampler")
    karras: bool = Field(False, description="euler, dpmpp_2m, unipc: Karras' noise levels (2206.00364, eq. 5)")
    eta: float = Field(0.0, ge=0, le=1, description="ddim: noise added at each step (2010.02502, eq. 16)")
    solver_order: int | None = Field(None, ge=1, le=3, description="unipc: its order (2302.04867); null = 2")
    clip_skip: int | None = Field(
        None, ge=1, le=12, description="which layer of the text encoder is used, 1 = the last; null = the family's own"
    )
    negative_prompt: str = Field("", description="negative prompt")
    second_prompt: str | None = Field(
        None, description="prompt for the second text encoder (sdxl, sd3); null = the same"
    )
    second_negative_prompt: str | None = Field(None, description="its negative prompt; null = the same")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (42,), min_length=1, description="one picture each, of every validation reference at every checkpoint"
    )
    report_seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (42, 43, 44, 45),
        min_length=1,
        description="one picture each, of every test reference at the chosen checkpoint and at step 0",
    )
    hires: Hires | None = Field(None, description="hires fix, see hires; null = off")
    max_references: int = Field(10, ge=1, le=1000, description="references sampled and measured, first by id")
    batch_size: int = Field(1, ge=1, le=1000, description="pictures sampled at once: more is faster and takes memory")
    decode: Literal["whole", "sliced", "tiled"] = Field(
        "whole",
        description="how the VAE decodes, to save GPU memory: all pictures at once; one after the other; each in "
        "overlapping tiles of half the base's side, whose colours can differ a little",
    )

    @property
    def average(self) -> bool:
        """Whether the LoRA's average is drawn with."""
        return self.weights == "ema"

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, value: str) -> str:
        return on_menu(value, choices.SCHEDULERS)

    @model_validator(mode="after")
    def _sampler_has_its_options(self) -> Self:
        for option, samplers in SAMPLER_OPTIONS.items():
            if getattr(self, option) and self.scheduler not in samplers:
                raise ValueError(
                    f"{option} has no effect with scheduler: {self.scheduler}; it is for {', '.join(samplers)}"
                )
        return self

    @model_validator(mode="after")
    def _several_are_decoded(self) -> Self:
        if self.decode == "sliced" and self.batch_size == 1:
            raise ValueError("decode: sliced has no effect with batch_size: 1; choices: whole, tiled")
        return self

    @model_validator(mode="after")
    def _hires_has_a_step(self) -> Self:
        if self.hires is None:
            return self
        strength, said = self.hires.denoising_strength, f"hires.denoising_strength is {self.hires.denoising_strength:g}"
        if self.hires.steps == "share" and int(self.inference_steps * strength) < 1:
            raise ValueError(
                f"{said} of {self.inference_steps} inference_steps, which is no whole step; raise one of them"
            )
        if self.hires.steps == "all" and math.ceil(self.inference_steps / strength) > MOST_STEPS:
            raise ValueError(
                f"{said} and hires.steps is all, so {self.inference_steps} inference_steps are that share of "
                f"{math.ceil(self.inference_steps / strength)}; a schedule has {MOST_STEPS}: take fewer steps"
            )
        return self
