"""What the stage `train` is asked to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sdlora.config.params import Base, Encode, Flip
from sdlora.config.sample import Sample
from sdlora.config.train import Train
from sdlora.flow.recipe import Recipe

DONE = "done.json"  # in the store, a finished run has it: the sha256 of each of its files


class TrainRecipe(Recipe):
    """Train one version's LoRA."""

    stage: ClassVar[str] = "train"
    on_card: ClassVar[bool] = True
    folder_pattern: ClassVar[str] = "results/{version}"
    writes: ClassVar[tuple[str, ...]] = ("checkpoints/", "train_log.csv", "config.yaml")
    asides: ClassVar[frozenset[str]] = frozenset({"dataset", "base_name", "keep_runs", "sample", "size_px"})
    later: ClassVar[Mapping[str, Any]] = {
        "train.seeds": 1,
        "train.compile": "none",
        "train.processes": 1,
    }

    train: Train  # every null replaced by what it means
    checkpoint_steps: tuple[int, ...]
    base: Base
    base_identity: str  # which weights that is
    flip: Flip
    trigger: str
    encode: Encode | None  # how latents are made, where they are not cached on disk
    threads: int
    dataset: Path  # the fitted set
    base_name: str  # entry of `bases`
    keep_runs: int  # finished runs kept in the store
    sample: Sample | None = None  # how it will be drawn, for which there must be memory, too
    size_px: int = 0  # side of what is drawn

    @property
    def cards(self) -> int:
        """One for each of its processes."""
        return self.train.processes
