"""How alike a sample and its reference are to CLIP."""

from collections.abc import Sequence
from typing import Any

from sdlora.stages.evaluate.embedding import asks, cosines
from sdlora.stages.evaluate.metric import Floats, Metric, Pixels


def clip_i(samples: Sequence[Pixels], references: Sequence[Pixels], prompts: Sequence[str], clip_model: Any) -> Floats:
    """CLIP-I: cosine of the CLIP embeddings of a sample and its reference (DreamBooth, 2208.12242, section 4.1).

    DreamBooth averages over all pairs of samples and real pictures of the subject. Here a sample has the one reference
    whose prompt it was drawn by, as in every other metric.

    Args:
        samples: (H, W, 3) uint8 each.
        references: What each is measured against.
        prompts: Not looked at.
        clip_model: A `Clip`.

    Returns:
        One cosine a sample, -1 to 1; 1 for equal pictures.
    """
    return cosines(clip_model.pictures(samples), clip_model.pictures(references))


CLIP_I = Metric(
    "clip_i",
    higher_is_better=True,
    measure=clip_i,
    needs=frozenset({"references", "clip_model"}),
    prepare=asks("clip_model"),
)
