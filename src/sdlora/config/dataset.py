"""The section `datasets` of `params.yaml`."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from sdlora.config.sections import Section
from sdlora.config.sources import Scrape, Source

ALPHA = "alpha"  # the value of datasets.<name>.masks that means each picture's own alpha channel
Repeats = Annotated[int, Field(ge=1, le=1000)]


class Dataset(Section):
    """Pictures to learn from and pictures held out to measure against."""

    sources: tuple[Source, ...] = Field(min_length=1, description="where pictures come from, in order")
    trigger: str = Field(
        min_length=1, max_length=200, description="word or words that stand for what is learnt, first in each caption"
    )
    minimum: int = Field(1, ge=1, description="fewer accepted training pictures than this is an error")
    scrape: Scrape = Field(Scrape(), description="limits on what a search may bring")
    held_out: int | str = Field(
        0,
        description="references kept from training: how many (chosen by content hash), or a subfolder's name",
    )
    captions_override: str | None = Field(
        None, description="JSONL of {id or file, caption} that wins over text files and BLIP"
    )
    undesired_tags: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="tags left out of captions, so that the trigger learns them; `hat` leaves out `red hat`, too",
    )
    flip: bool = Field(True, description="false where mirroring changes the meaning (text, one-sided faces)")
    masks: str | None = Field(
        None,
        min_length=1,
        description="masks for train.mask: user: alpha (each picture's own alpha channel), or a folder of masks",
    )
    repeats: dict[str, Repeats] = Field({}, description="draws per epoch of a subfolder's pictures: {subfolder: N}")
    kohya_repeats: bool = Field(False, description="read repeats from subfolders' names, as kohya does: 3_hat is 3")

    @field_validator("trigger")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the trigger is blank; say a word or some that stand for what is learnt")
        return value

    @field_validator("held_out", mode="before")
    @classmethod
    def _how_many_or_where(cls, value: object) -> object:
        if type(value) not in (int, str):
            raise ValueError(f"held_out is {value!r}; a number of pictures or a subfolder's path is wanted")
        return value

    @model_validator(mode="after")
    def _held_out_in_range(self) -> Self:
        if isinstance(self.held_out, int) and self.held_out < 0:
            raise ValueError(f"held_out is {self.held_out}; it must be 0 or more, or a subfolder's name")
        return self

    @model_validator(mode="after")
    def _repeats_said_once(self) -> Self:
        if self.repeats and self.kohya_repeats:
            raise ValueError("repeats and kohya_repeats both say how often pictures are drawn; set one of them")
        return self
