"""What the stage `choose` is asked to do."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sdlora.flow.recipe import Values
from sdlora.stages.evaluate.recipe import MeasuringRecipe
from sdlora.stages.sample.recipe import DrawingRecipe


class ChooseRecipe(DrawingRecipe, MeasuringRecipe):
    """Choose a checkpoint, and draw with it the prompts of the references that report."""

    stage: ClassVar[str] = "choose"
    folder_pattern: ClassVar[str] = "results/{version}"
    writes: ClassVar[tuple[str, ...]] = ("choice.json", "test_samples/")
    asides: ClassVar[frozenset[str]] = frozenset({"references"})
    later: ClassVar[Mapping[str, Any]] = {**DrawingRecipe.later, **MeasuringRecipe.later, "chosen": None}

    chosen: int | None  # the step that a person chose over the rule's
    drawing_code: str  # of the stage `sample`, which draws these pictures, too
    drawing_software: dict[str, str]

    def drawn_by(self) -> Values:
        """The code that draws, and its packages: not the code that chooses."""
        return {"code": self.drawing_code, "software": self.drawing_software}
