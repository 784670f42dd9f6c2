"""How alike a sample and its reference are to DINOv2, which tells subjects of one kind apart better than CLIP."""

from collections.abc import Sequence
from typing import Any

from sdlora.stages.evaluate.embedding import asks, cosines
from sdlora.stages.evaluate.metric import Floats, Metric, Pixels


def dinov2(
    samples: Sequence[Pixels], references: Sequence[Pixels], prompts: Sequence[str], dinov2_model: Any
) -> Floats:
    """Cosine of the DINOv2 class tokens of a sample and its reference.

    DreamBooth's DINO score (Ruiz et al., 2208.12242, section 4.1) with DINOv2 (Oquab et al., 2304.07193) in place of
    DINO's ViT-S/16, and with a sample's own reference in place of all real pictures.

    Args:
        samples: (H, W, 3) uint8 each.
        references: What each is measured against.
        prompts: Not looked at.
        dinov2_model: A `Dinov2`.

    Returns:
        One cosine a sample, -1 to 1; 1 for equal pictures.
    """
    return cosines(dinov2_model.pictures(samples), dinov2_model.pictures(references))


DINOV2 = Metric(
    "dinov2",
    higher_is_better=True,
    measure=dinov2,
    needs=frozenset({"references", "dinov2_model"}),
    prepare=asks("dinov2_model"),
)
