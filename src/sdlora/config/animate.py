"""The section `animate`: how a chosen picture is made to move."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sdlora.config.sections import Section

#: Stable Video Diffusion's model for 25 frames, at the commit that was current when this was written.
XT, XT_COMMIT = "stabilityai/stable-video-diffusion-img2vid-xt", "9e43909513c6714f1bc78bcb44d96e733cd242aa"
Side = Annotated[int, Field(ge=64, le=2048, multiple_of=64)]


class Animate(Section):
    """A sampled picture that Stable Video Diffusion makes move (2311.15127): `results/<version>/animation.gif`."""

    model: str = Field(XT, description="folder or hub id of the pipeline")
    revision: str | None = Field(
        None, description="commit, branch or tag on the hub; null = main, of the default model a fixed commit"
    )
    dtype: Literal["fp32", "fp16", "bf16"] = Field("fp16", description="type of the weights; fp16 needs a GPU")
    reference: int = Field(1, ge=1, description="number of the reference whose picture at the chosen step is used")
    width_px: Side = Field(1024, description="width of the frames while they are made, a multiple of 64")
    height_px: Side = Field(576, description="their height; the picture is padded to this size and cut back")
    frames: int = Field(25, ge=2, le=200, description="frames made; the xt model is trained on 25, the first one on 14")
    fps: int = Field(7, ge=1, le=30, description="frames a second, also given to the model")
    motion_bucket_id: int = Field(127, ge=0, le=255, description="amount of motion")
    noise_aug_strength: float = Field(
        0.02, ge=0, le=1, description="noise on the picture; more makes frames differ from it"
    )
    min_guidance_scale: float = Field(1.0, ge=1, le=20, description="guidance of the first frame")
    max_guidance_scale: float = Field(3.0, ge=1, le=20, description="guidance of the last frame")
    inference_steps: int = Field(25, ge=1, le=200, description="denoising steps")
    decode_chunk_size: int = Field(4, ge=1, le=200, description="frames decoded at once: more is faster, takes memory")
    seed: int = Field(42, ge=0, description="seed of the noise")

    @model_validator(mode="before")
    @classmethod
    def _pinned(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("model", XT) == XT and values.get("revision") is None:
            return {**values, "revision": XT_COMMIT}
        return values

    @model_validator(mode="after")
    def _guidance_rises(self) -> Self:
        if self.min_guidance_scale > self.max_guidance_scale:
            raise ValueError(
                f"min_guidance_scale is {self.min_guidance_scale:g}, above max_guidance_scale "
                f"({self.max_guidance_scale:g})"
            )
        return self
