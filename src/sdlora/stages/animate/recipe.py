"""What the stage `animate` is asked to do."""

from typing import ClassVar

from sdlora.config.animate import Animate
from sdlora.flow.recipe import Recipe


class AnimateRecipe(Recipe):
    """Make a picture of the chosen checkpoint move."""

    stage: ClassVar[str] = "animate"
    on_card: ClassVar[bool] = True
    folder_pattern: ClassVar[str] = "results/{version}"
    writes: ClassVar[tuple[str, ...]] = ("animation.gif",)

    animate: Animate
    model_identity: str  # which weights that is
    threads: int
