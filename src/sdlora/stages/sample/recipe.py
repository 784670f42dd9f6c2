"""What the stages that draw are asked to do, and the stage `sample` of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sdlora.config.params import Base
from sdlora.config.sample import Sample
from sdlora.flow.recipe import Recipe, Values

#: Settings of `sample` that say which pictures are drawn, not how.
WHICH = ("seeds", "report_seeds", "max_references")
REPORT_SEEDS = Sample.model_fields["report_seeds"].default


class DrawingRecipe(Recipe):
    """Draw some references' prompts at some checkpoints."""

    on_card: ClassVar[bool] = True
    folder_pattern: ClassVar[str] = "results/{version}"
    asides: ClassVar[frozenset[str]] = frozenset({"references"})
    later: ClassVar[Mapping[str, Any]] = {
        "sample.karras": False,
        "sample.eta": 0.0,
        "sample.solver_order": None,
        "sample.clip_skip": None,
        "sample.second_prompt": None,
        "sample.second_negative_prompt": None,
        "sample.hires.steps": "share",
        "sample.hires.upscale": "lanczos",
        "sample.fuse_lora": False,
        "sample.decode": "whole",
        "trigger": None,
    }

    sample: Sample
    base: Base
    base_identity: str  # which weights that is
    size_px: int
    threads: int
    references: Path  # the fitted set whose references are drawn
    trigger: str | None  # where the prompts are drawn without it, too
    validation: float  # share of the references that choose

    def drawn_by(self) -> Values:
        """The code that draws, and its packages."""
        return {"code": self.code, "software": self.software}

    def drawing(self) -> Values:
        """All that a picture depends on but its prompt, its seed and its LoRA: equal in every stage that draws."""
        asked = self.identity()
        how = {key: value for key, value in asked["sample"].items() if key not in WHICH}
        said = {name: asked[name] for name in ("base", "base_identity", "size_px", "threads")}
        return {"sample": how, **said, **self.drawn_by()}


class SampleRecipe(DrawingRecipe):
    """Draw the prompts of the references that choose, at every checkpoint."""

    stage: ClassVar[str] = "sample"
    writes: ClassVar[tuple[str, ...]] = ("samples/",)
    #: What is drawn of the others says nothing about these pictures: it is left at its default.
    later: ClassVar[Mapping[str, Any]] = {**DrawingRecipe.later, "sample.report_seeds": [*REPORT_SEEDS]}
