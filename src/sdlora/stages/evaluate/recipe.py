"""What the stage `evaluate` is asked to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sdlora.config.params import Evaluate
from sdlora.flow.recipe import Recipe


class EvaluateRecipe(Recipe):
    """Measure a version's samples against its references."""

    stage: ClassVar[str] = "evaluate"
    folder_pattern: ClassVar[str] = "results/{version}"
    writes: ClassVar[tuple[str, ...]] = ("metrics.csv", "metrics.json", "best.json", "curves/", "tables/")
    shown: ClassVar[dict[str, str]] = {"metrics.csv": "metrics.rst"}
    asides: ClassVar[frozenset[str]] = frozenset({"references"})
    later: ClassVar[Mapping[str, Any]] = {"chosen": None}

    evaluate: Evaluate
    chosen: int | None  # the step that a person chose over the rule's
    references: Path  # the fitted set that holds them
