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
    batch_size: int = Field(
        1,
        ge=1,
        le=1000,
        description="pictures captioned at once: more is faster and takes memory; a caption may then depend, by "
        "rounding, on the pictures beside its own",
    )
    prune_shared_tags: float | None = Field(
        None,
        gt=0,
        le=1,
        description="a tag (the text between two commas) that at least this share of the training captions has is left "
        "out, so that the trigger learns it; null leaves every tag in",
    )

    @property
    def of_one_picture(self) -> Self:
        """The section where a picture is described by itself, whatever the dataset's are beside."""
        return self.model_copy(update={"batch_size": 1})

    @field_validator("by")
    @classmethod
    def _known_captioner(cls, value: str) -> str:
        return on_menu(value, choices.CAPTIONERS)

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        for key in ("max_new_tokens", "num_beams", "batch_size", "prune_shared_tags"):
            if self.by == "none" and (value := getattr(self, key)) != type(self).model_fields[key].default:
                own = type(self).model_fields[key].default
                raise ValueError(
                    f"{key} is {value}, but by is none: nothing is said of a picture; set {key}: "
                    f"{'null' if own is None else own} beside it"
                )
        return self
