"""What the stage `caption` is asked to do."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sdlora.config.caption import Caption
from sdlora.flow.recipe import Recipe

NOBODY = "the trigger alone"  # in the place of the captioner's weights, where nothing is said of a picture


class CaptionRecipe(Recipe):
    """Describe fitted pictures in words."""

    stage: ClassVar[str] = "caption"
    on_card: ClassVar[bool] = True
    folder_pattern: ClassVar[str] = "data/sets/{dataset}/{fit}"
    writes: ClassVar[tuple[str, ...]] = ("captions.jsonl",)
    later: ClassVar[Mapping[str, Any]] = {
        "caption.by": "blip",
        "caption.prune_shared_tags": None,
        "caption.batch_size": 1,
        "undesired_tags": [],
    }

    caption: Caption
    captioner: str  # hub id or folder of its weights
    captioner_identity: str  # which weights that are
    captioner_revision: str | None
    trigger: str  # first in each caption
    threads: int
    override: str | None  # a user's own captions
    overrides: str | None  # what they say: the file's hash
    undesired_tags: tuple[str, ...] = ()  # left out of captions that nobody wrote by hand
