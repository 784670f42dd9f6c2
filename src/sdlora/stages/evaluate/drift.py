"""What a LoRA does to prompts that do not ask for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sdlora.images.pictures import read_rgb
from sdlora.stages.evaluate.effnet import distance, features
from sdlora.stages.evaluate.metric import Floats, Metric, Pixels
from sdlora.stages.evaluate.recipe import MeasuringRecipe
from sdlora.stages.sample.parts import UNTRIGGERED, all_drawn

Pair = tuple[Pixels, Pixels]


def effnet_lite0_drift(
    samples: Sequence[Pixels], references: Sequence[Pixels], prompts: Sequence[str], untriggered: Sequence[Pair]
) -> Floats:
    """EffNet-Lite0 distance between the pictures of a prompt without its trigger, with the LoRA and without.

    The same prompt, seed and noise: what differs is what the LoRA has done to everything else (the prior drift that
    DreamBooth's prior preservation is against, Ruiz et al., arXiv 2208.12242, section 4.2).

    Args:
        samples: Not looked at.
        references: Not looked at.
        prompts: Not looked at.
        untriggered: For each sample the picture at its step and the one at step 0.

    Returns:
        One distance a sample, 0 at step 0, at most 4.
    """
    return np.array([distance(features(now), features(before)) for now, before in untriggered])


def prepare(recipe: MeasuringRecipe) -> Callable[[int, Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """The pictures without the trigger, which the stages before have drawn."""
    files = {
        (row["step"], row["reference"], row["seed"]): recipe.folder / row["file"]
        for row in all_drawn(recipe.folder, UNTRIGGERED)
    }

    def at(step: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        pairs = [
            tuple(np.asarray(read_rgb(files[one, row["reference"], row["seed"]])) for one in (step, 0)) for row in rows
        ]
        return {"untriggered": pairs}

    return at


EFFNET_LITE0_DRIFT = Metric(
    "effnet_lite0_drift",
    higher_is_better=False,
    measure=effnet_lite0_drift,
    needs=frozenset({"prompts", "untriggered"}),
    prepare=prepare,
)
