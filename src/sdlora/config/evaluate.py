"""The section `evaluate`: what is measured, by which networks, and what chooses a checkpoint."""

from typing import Self

from pydantic import Field, field_serializer, field_validator, model_validator

from sdlora import choices
from sdlora.config.sections import Section, each_once, on_menu
from sdlora.errors import suggest

#: Settings that name a network which metrics ask, and what says which revision of it.
NETWORKS = {"clip_model": "clip_revision", "dinov2_model": "dinov2_revision", "cmmd_model": "cmmd_revision"}
CLIP, DINOV2 = "openai/clip-vit-large-patch14", "facebook/dinov2-base"
#: Commits, not `main`: what the hub shows under a branch may change.
COMMITS = {CLIP: "32bd64288804d66eefd0ccbe215aa642df71cc41", DINOV2: "f9e44c814b77203eaa57a6bdbbd535f21ede1415"}
REVISION = "its hub revision (commit, tag or branch); null = a fixed commit of the default, main of any other"


class Evaluate(Section):
    """What is measured, and which checkpoint is called best."""

    metrics: tuple[str, ...] = Field(
        ("psnr_db", "ssim", "effnet_lite0_distance"), min_length=1, description="what is measured"
    )
    choose_by: tuple[str, ...] = Field(
        ("effnet_lite0_distance",),
        min_length=1,
        description="the entry of metrics whose mean chooses the best step, or several, whose mean rank does",
    )
    validation: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the references that choose, first by id; the others report. With fewer than 5 in either "
        "part all choose, and no step is called better",
    )
    bootstrap_samples: int = Field(2000, ge=100, le=100_000, description="resamples of the 95 % interval")
    clip_model: str = Field(
        CLIP, min_length=1, description="the CLIP of clip_t and clip_i: hub id, or a folder with its safetensors"
    )
    clip_revision: str | None = Field(None, description=REVISION)
    dinov2_model: str = Field(DINOV2, min_length=1, description="the DINOv2 of dinov2: hub id or folder, likewise")
    dinov2_revision: str | None = Field(None, description=REVISION)
    cmmd_model: str = Field(CLIP, min_length=1, description="the CLIP of cmmd: hub id or folder, likewise")
    cmmd_revision: str | None = Field(None, description=REVISION)

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        each_once("metrics", value)
        return tuple(on_menu(name, choices.METRICS) for name in value)

    @field_validator("choose_by", mode="before")
    @classmethod
    def _one_metric(cls, value: object) -> object:
        if isinstance(value, list):  # a recipe's JSON
            return tuple(value)
        return (value,) if isinstance(value, str) else value

    @field_serializer("choose_by")
    def _one_as_it_is_written(self, value: tuple[str, ...]) -> str | tuple[str, ...]:
        return value[0] if len(value) == 1 else value

    def network(self, setting: str) -> tuple[str, str | None]:
        """What an entry of `NETWORKS` names: the model and its revision on the hub."""
        model: str = getattr(self, setting)
        return model, getattr(self, NETWORKS[setting]) or COMMITS.get(model)

    @property
    def without_networks(self) -> Self:
        """The section with the default networks: a recipe names those that its metrics ask apart."""
        named = (*NETWORKS, *NETWORKS.values())
        return self.model_copy(update={name: type(self).model_fields[name].default for name in named})

    @model_validator(mode="after")
    def _chosen_is_measured(self) -> Self:
        for name in self.choose_by:
            if name not in self.metrics:
                raise ValueError(f"choose_by is {name!r}, which metrics does not have{suggest(name, self.metrics)}")
        each_once("choose_by", self.choose_by)
        return self
