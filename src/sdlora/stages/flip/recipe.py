"""What the stage `flip` is asked to do."""

from typing import ClassVar, Literal

from sdlora.config.dataset import Repeats
from sdlora.flow.recipe import Recipe


class FlipRecipe(Recipe):
    """Mirror pictures, and join text, repeats and geometry into the set that is trained on."""

    stage: ClassVar[str] = "flip"
    folder_pattern: ClassVar[str] = "data/sets/{dataset}/{fit}"
    writes: ClassVar[tuple[str, ...]] = ("train/",)

    mirror: bool
    swap_words: bool
    trigger: str  # no word of it is swapped; empty where none would be
    repeats: dict[str, Repeats] | Literal["kohya"]
    kohya: tuple[str, str] | None  # layout and trigger of the same set for kohya's trainer
