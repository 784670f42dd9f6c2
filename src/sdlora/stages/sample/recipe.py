"""What the stage `sample` is asked to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sdlora.config.params import Base, Sample
from sdlora.flow.recipe import Recipe

UNTRIGGERED = "untriggered.jsonl"  # rows of the prompts without the trigger, as in `index.jsonl`


class SampleRecipe(Recipe):
    """Draw every reference's prompt at every checkpoint."""

    stage: ClassVar[str] = "sample"
    on_card: ClassVar[bool] = True
    folder_pattern: ClassVar[str] = "results/{version}"
    writes: ClassVar[tuple[str, ...]] = ("samples/",)
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
