"""Whether different sampling seeds still give different pictures."""

from collections.abc import Sequence

import numpy as np

from sdlora.stages.evaluate.effnet import distance, features
from sdlora.stages.evaluate.metric import Floats, Metric, Pixels
from sdlora.stages.evaluate.statistics import mean_interval

LEAST_SHARE = 0.5  # of step 0's diversity; less is a collapse


def effnet_lite0_diversity(samples: Sequence[Pixels], references: Sequence[Pixels], prompts: Sequence[str]) -> Floats:
    """Mean EffNet-Lite0 distance of a sample to the others of its prompt, which differ by their seed.

    Args:
        samples: (H, W, 3) uint8 each, at least two a prompt.
        references: Not looked at.
        prompts: What each sample was drawn by.

    Returns:
        One distance a sample, from 0 (every seed draws the same) to 4.

    Raises:
        ValueError: If a prompt has a single sample.
    """
    found = [features(picture) for picture in samples]
    values = []
    for number, (own, prompt) in enumerate(zip(found, prompts, strict=True)):
        others = [found[n] for n, other in enumerate(prompts) if other == prompt and n != number]
        if not others:
            raise ValueError(f"effnet_lite0_diversity needs two samples of each prompt; {prompt!r} has one")
        values.append(np.mean([distance(own, other) for other in others]))
    return np.array(values)


def collapsed(chosen: Sequence[float], step_0: Sequence[float], bootstrap_samples: int) -> str | None:
    """Warns where the chosen step has less than half of step 0's diversity, beyond the paired interval."""
    lacking = np.asarray(chosen) - LEAST_SHARE * np.asarray(step_0)
    if mean_interval(lacking.tolist(), bootstrap_samples).high >= 0:
        return None
    return (
        f"collapsed: seeds of one prompt differ by {np.mean(chosen):.3f}, less than half of the {np.mean(step_0):.3f} "
        f"without the LoRA"
    )


EFFNET_LITE0_DIVERSITY = Metric(
    "effnet_lite0_diversity",
    higher_is_better=True,
    measure=effnet_lite0_diversity,
    needs=frozenset({"prompts", "seeds"}),
    alarm=collapsed,
)
