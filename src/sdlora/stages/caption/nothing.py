"""No captions: every picture is called by the trigger alone, as some train a character from a few pictures."""

from collections.abc import Sequence
from typing import Any

from PIL import Image


class Nothing:
    """Says nothing of a picture; no model is loaded."""

    def __init__(self, *_: Any) -> None:
        pass

    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Nothing of each."""
        return [""] * len(pictures)
