"""`caption` in `params.yaml`: how a picture is described."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from sdlora import choices
from sdlora.config.sections import Section, on_menu


class Caption(Section):
    """How a picture is described."""

    by: str = Field("blip", description="what describes it: blip (the base's captioner), or none: the trigger alone")
    max_new_tokens: int = Field(60, ge=1, le=75, description="longest caption, tokens")
    num_beams: int = Field(1, ge=1, le=16, description="beams of the search; 1 = greedy")
    prune_shared_tags: float | None = Field(
        None,
        gt=0,
        le=1,
        description="a tag (the text between two commas) that at least this share of the training captions has is left "
        "out, so that the trigger learns it; null leaves every tag in",
    )

    @field_validator("by")
    @classmethod
    def _known_captioner(cls, value: str) -> str:
        return on_menu(value, choices.CAPTIONERS)

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        for key in ("max_new_tokens", "num_beams", "prune_shared_tags"):
            if self.by == "none" and (value := getattr(self, key)) != type(self).model_fields[key].default:
                own = type(self).model_fields[key].default
                raise ValueError(
                    f"{key} is {value}, but by is none: nothing is said of a picture; set {key}: "
                    f"{'null' if own is None else own} beside it"
                )
        return self
