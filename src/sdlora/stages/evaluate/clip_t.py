"""Whether a sample shows what its prompt says, as CLIP sees it."""

from collections.abc import Sequence
from typing import Any

from sdlora.stages.evaluate.embedding import asks, cosines
from sdlora.stages.evaluate.metric import Floats, Metric, Pixels


def clip_t(samples: Sequence[Pixels], references: Sequence[Pixels], prompts: Sequence[str], clip_model: Any) -> Floats:
    """CLIP-T: cosine of a sample's and its prompt's CLIP embeddings (DreamBooth, Ruiz et al., 2208.12242, section 4.1).

    CLIPScore (Hessel et al., 2104.08718, equation 1) without its factor and its floor at 0. The whole prompt counts,
    its trigger included; a trigger that is no word of English lowers all values alike.

    Args:
        samples: (H, W, 3) uint8 each.
        references: Not looked at.
        prompts: What each was drawn by.
        clip_model: A `Clip`.

    Returns:
        One cosine a sample, -1 to 1; for CLIP's own weights mostly 0.15 to 0.35.
    """
    return cosines(clip_model.pictures(samples), clip_model.prompts(prompts))


CLIP_T = Metric(
    "clip_t",
    higher_is_better=True,
    measure=clip_t,
    needs=frozenset({"prompts", "clip_model"}),
    prepare=asks("clip_model"),
)
