"""What the stage `probe` is asked to do."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from sdlora.flow import store
from sdlora.flow.identity import run_key
from sdlora.flow.recipe import Values
from sdlora.lora.names import file_in
from sdlora.stages.evaluate.recipe import MeasuringRecipe
from sdlora.stages.sample.recipe import DrawingRecipe, SampleRecipe
from sdlora.stages.train.recipe import TrainRecipe

PROBE = "probe.json"


class ProbeRecipe(DrawingRecipe, MeasuringRecipe):
    """Train a trial up to a checkpoint, draw the references that choose, and measure them."""

    stage: ClassVar[str] = "probe"
    folder_pattern: ClassVar[str] = "results/{version}/probes/step-{step}"
    writes: ClassVar[tuple[str, ...]] = (PROBE, "samples/")
    asides: ClassVar[frozenset[str]] = frozenset({"references", "training"})
    later: ClassVar[Mapping[str, Any]] = {**SampleRecipe.later, **MeasuringRecipe.later}

    training: TrainRecipe  # the whole training, of which this is a part: the stage `train` goes on with it
    steps: tuple[int, ...]  # what is drawn and measured; the last is how far it is trained
    drawing_code: str  # of the stage `sample`, which draws these pictures, too
    drawing_software: dict[str, str]

    def identity(self) -> Values:
        """With the training's own, which leaves out where things are."""
        return {**super().identity(), "training": self.training.identity()}

    def drawn_by(self) -> Values:
        """The code that draws, and its packages: not the code that measures."""
        return {"code": self.drawing_code, "software": self.drawing_software}

    @property
    def cards(self) -> int:
        """As many as the training has."""
        return self.training.cards

    @property
    def is_last(self) -> bool:
        """Whether the training ends here, so that a checkpoint is chosen."""
        return self.steps[-1] == self.training.checkpoint_steps[-1]

    @cached_property
    def run(self) -> Path:
        """Where the store keeps the training."""
        return store.STORE / "train" / run_key(self.training.identity(), self.training.inputs)

    def lora_of(self, step: int) -> Path | None:
        """A checkpoint's file in the store; step 0 has none."""
        checkpoint = self.run / "checkpoints" / f"step-{step:06d}"
        return file_in(checkpoint, self.sample.average) if step else None
