"""What the stage `encode` is asked to do."""

from typing import ClassVar

from sdlora.config.params import Base, Encode
from sdlora.flow.recipe import Recipe


class EncodeRecipe(Recipe):
    """Encode the training pictures to latents."""

    stage: ClassVar[str] = "encode"
    on_card: ClassVar[bool] = True
    folder_pattern: ClassVar[str] = "data/sets/{dataset}/{fit}"
    writes: ClassVar[tuple[str, ...]] = ("latents/{base}/",)
    record: ClassVar[str] = "made/encode-{base}.json"

    encode: Encode
    base: Base
    base_identity: str  # which weights that is
    threads: int

    @property
    def base_name(self) -> str:
        """Entry of `bases`."""
        return self.wildcards["base"]
