"""What the stage `evaluate` is asked to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from sdlora.config.caption import Caption
from sdlora.config.evaluate import CLIP, DINOV2, Evaluate
from sdlora.config.params import Base
from sdlora.flow.recipe import Recipe
from sdlora.lora.names import file_in


class Learning(BaseModel):
    """What a metric needs that asks the base with a checkpoint's LoRA."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Base
    base_identity: str  # which weights that is
    lora_scale: float
    average: bool  # whether the version draws with its average
    threads: int


class Describing(BaseModel):
    """What a metric needs that describes samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    caption: Caption
    captioner: str
    captioner_identity: str
    captioner_revision: str | None
    trigger: str
    threads: int


class Network(BaseModel):
    """A pretrained network that a metric asks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str  # hub id or folder
    revision: str | None
    identity: str  # which weights that is
    threads: int


class MeasuringRecipe(Recipe):
    """Measure samples against references."""

    folder_pattern: ClassVar[str] = "results/{version}"
    asides: ClassVar[frozenset[str]] = frozenset({"references"})
    later: ClassVar[Mapping[str, Any]] = {
        "learning": None,
        "describing.caption.batch_size": 1,  # before the section that holds it
        "describing": None,
        "networks": {},
        "evaluate.clip_model": CLIP,
        "evaluate.clip_revision": None,
        "evaluate.dinov2_model": DINOV2,
        "evaluate.dinov2_revision": None,
        "evaluate.cmmd_model": CLIP,
        "evaluate.cmmd_revision": None,
    }

    evaluate: Evaluate
    references: Path  # the fitted set that holds them
    learning: Learning | None  # of metrics that need it
    describing: Describing | None
    networks: dict[str, Network]  # by the setting that names each

    def lora_of(self, step: int) -> Path | None:
        """A checkpoint's file; step 0 has none."""
        average = self.learning is not None and self.learning.average
        return file_in(self.folder / "checkpoints" / f"step-{step:06d}", average) if step else None


class EvaluateRecipe(MeasuringRecipe):
    """Measure a version's samples against its references."""

    stage: ClassVar[str] = "evaluate"
    writes: ClassVar[tuple[str, ...]] = (
        "metrics.csv", "pictures.csv", "metrics.json", "best.json", "curves/", "tables/",
    )  # fmt: skip
    shown: ClassVar[dict[str, str]] = {"metrics.csv": "metrics.rst"}

    @property
    def cards(self) -> int:
        """One where a metric asks a network."""
        return int(self.learning is not None or self.describing is not None or bool(self.networks))


class CompareRecipe(Recipe):
    """Compare two versions, or one and the base."""

    stage: ClassVar[str] = "compare"
    folder_pattern: ClassVar[str] = "results/compare"
    writes: ClassVar[tuple[str, ...]] = ("{one}-vs-{other}.csv", "{one}-vs-{other}.html")

    bootstrap_samples: int
    versions: dict[str, dict[str, Any]]  # the settings a reader compares each by
    trainings: dict[str, tuple[str, ...]]  # of each version, its own first
    references: dict[str, Path]  # the fitted set that holds each version's
    datasets: dict[str, Path]  # the fitted set that each learnt from
    folders: dict[str, tuple[Path, ...]]  # the user's own, among the sources of each one's dataset
    votes: str | None  # what people voted: the hash of votes.jsonl
