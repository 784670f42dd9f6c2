"""The section `evaluate`: what is measured, and what chooses a checkpoint."""

from typing import Self

from pydantic import Field, field_serializer, field_validator, model_validator

from sdlora import choices
from sdlora.config.sections import Section, on_menu
from sdlora.errors import suggest


class Evaluate(Section):
    """What is measured, and which checkpoint is called best."""

    metrics: tuple[str, ...] = Field(
        ("psnr_db", "ssim", "effnet_lite0_distance"), min_length=1, description="entries of choices.METRICS"
    )
    choose_by: tuple[str, ...] = Field(
        ("effnet_lite0_distance",),
        min_length=1,
        description="the metric whose mean chooses the best step, or several, whose mean rank does",
    )
    validation: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the references that choose, first by id; the others report. With fewer than 5 in either "
        "part all choose, and no step is called better",
    )
    bootstrap_samples: int = Field(2000, ge=100, le=100_000, description="resamples of the 95 % interval")

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
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

    @model_validator(mode="after")
    def _chosen_is_measured(self) -> Self:
        for name in self.choose_by:
            if name not in self.metrics:
                raise ValueError(f"choose_by is {name!r}{suggest(name, self.metrics)}")
        if len(set(self.choose_by)) < len(self.choose_by):
            raise ValueError(f"choose_by names {self.choose_by[-1]!r} or another metric twice")
        return self
