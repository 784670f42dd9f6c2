"""What the stage `fit` is asked to do."""

from pathlib import Path
from typing import ClassVar

from sdlora.config.params import Fit
from sdlora.flow.recipe import Recipe


class FitRecipe(Recipe):
    """Fit a dataset's pictures to a square or to buckets."""

    stage: ClassVar[str] = "fit"
    folder_pattern: ClassVar[str] = "data/sets/{dataset}/{fit}"
    writes: ClassVar[tuple[str, ...]] = ("fit.jsonl", "pictures/")

    fit: Fit
    masks: str | None  # `alpha`, a folder, or none
    mask_files: str | None  # identity of that folder

    @property
    def source(self) -> Path:
        """The dataset's folder, with `manifest.jsonl` and `raw/`."""
        return self.folder.parent
