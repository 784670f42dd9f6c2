"""What the stage `adopt` is asked to do."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from sdlora.config.params import Base
from sdlora.flow.recipe import Recipe

FACTS = "foreign.json"  # beside the checkpoint: where it comes from


class Adopted(BaseModel):
    """One LoRA of a version: a file, or a checkpoint of a version that is trained here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str | None
    file_identity: str | None  # what it holds; None where it is not there
    version: str | None
    step: int | None  # None is the chosen one
    average: bool  # whether the version draws with its average
    weight: float


class AdoptRecipe(Recipe):
    """Take a LoRA from elsewhere in the place of a training."""

    stage: ClassVar[str] = "adopt"
    folder_pattern: ClassVar[str] = "results/{version}"
    writes: ClassVar[tuple[str, ...]] = ("checkpoints/", "export/", "train_log.csv", "config.yaml", "README.md")

    version: str  # in the files' names
    loras: tuple[Adopted, ...]
    base: Base
    base_identity: str  # which weights that is
