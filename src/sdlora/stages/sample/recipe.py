"""What the stage `sample` is asked to do."""

from pathlib import Path
from typing import ClassVar

from sdlora.config.params import Base, Sample
from sdlora.flow.recipe import Recipe


class SampleRecipe(Recipe):
    """Draw every reference's prompt at every checkpoint."""

    stage: ClassVar[str] = "sample"
    folder_pattern: ClassVar[str] = "results/{version}"
    writes: ClassVar[tuple[str, ...]] = ("samples/",)
    asides: ClassVar[frozenset[str]] = frozenset({"references"})

    sample: Sample
    base: Base
    base_identity: str  # which weights that is
    size_px: int
    threads: int
    references: Path  # the fitted set whose references are drawn
