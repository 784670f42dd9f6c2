"""What the stage `export` is asked to do."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sdlora.config.params import Base, Export
from sdlora.config.train import Train
from sdlora.flow.recipe import Recipe


class ExportRecipe(Recipe):
    """Write a trained version's files for other tools, and its card."""

    stage: ClassVar[str] = "export"
    folder_pattern: ClassVar[str] = "results/{version}"
    writes: ClassVar[tuple[str, ...]] = ("export/", "README.md")
    later: ClassVar[Mapping[str, Any]] = {"train.seeds": 1, "train.processes": 1}

    version: str  # in the files' names
    train: Train
    base: Base
    base_identity: str  # which weights that is
    export: Export
