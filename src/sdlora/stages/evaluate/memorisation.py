"""Whether samples are nearer to the pictures that were learnt from than new pictures of their kind are."""

from collections.abc import Iterable, Sequence

import numpy as np

from sdlora.stages.evaluate.effnet import Features, distance, features
from sdlora.stages.evaluate.metric import Floats, Metric, Pixels
from sdlora.stages.evaluate.statistics import level_interval

LEAST = 1e-6  # of a distance, so that a copy of a held-out picture does not divide by 0


def memorisation_ratio(
    samples: Sequence[Pixels],
    references: Sequence[Pixels],
    prompts: Sequence[str],
    training: Sequence[Pixels],
    held_out: Sequence[Pixels],
) -> Floats:
    """Distance to the nearest training picture, over that to the nearest held-out one; a new picture has about 1.

    Both as pictures are and mirrored, by EffNet-Lite0 features. Of more pictures one is nearer by chance, and there
    are more to learn from than are held out; so it is divided by the median of the same ratio of the held-out
    pictures themselves, each against the others. (The nearest-neighbour test of copying, as in Meehan et al. 2020,
    arXiv 2004.05675, which compares with held-out pictures for the same reason.)

    Args:
        samples: (H, W, 3) uint8 each.
        references: Not looked at: they are those of one part of the held-out pictures.
        prompts: Not looked at.
        training: The pictures that were learnt from, at any size.
        held_out: All held-out pictures, whichever part is measured; two different ones are needed.

    Returns:
        One ratio a sample: 0 for a copy of a training picture; below 1 nearer to what was learnt from.

    Raises:
        ValueError: If there are no training pictures, or fewer than two different held-out ones.
    """
    held_out = list({picture.tobytes(): picture for picture in held_out}.values())
    if len(held_out) < 2 or not training:
        raise ValueError(
            f"memorisation_ratio needs two held-out pictures and one training picture, not {len(held_out)} and "
            f"{len(training)}"
        )
    of_samples = [features(picture) for picture in samples]
    of_held_out = [features(picture) for picture in held_out]
    learnt = _nearest([*of_samples, *of_held_out], training)
    unseen = np.array([_distances([*of_samples, *of_held_out], picture) for picture in held_out])
    for number in range(len(held_out)):  # none is its own neighbour
        unseen[number, len(samples) + number] = np.inf
    ratios: Floats = learnt / np.maximum(unseen.min(axis=0), LEAST)
    return ratios[: len(samples)] / max(float(np.median(ratios[len(samples) :])), LEAST)


def _distances(to: Sequence[Features], picture: Pixels) -> Floats:
    """Of each to a picture, as it is or mirrored, whichever is nearer."""
    both = [features(picture), features(picture[:, ::-1])]
    return np.array([min(distance(one, other) for other in both) for one in to])


def _nearest(to: Sequence[Features], pictures: Iterable[Pixels]) -> Floats:
    nearest = np.full(len(to), np.inf)
    for picture in pictures:
        nearest = np.minimum(nearest, _distances(to, picture))
    return nearest


def memorised(chosen: Sequence[float], step_0: Sequence[float], bootstrap_samples: int) -> str | None:
    """Warns where the chosen step's interval lies below 1."""
    found = level_interval(chosen, bootstrap_samples)
    if found.high >= 1:
        return None
    return (
        f"memorised: samples are {found.mean:.2f} times as far from the nearest training picture as new pictures of "
        f"their kind are [{found.low:.2f}, {found.high:.2f}]; without the LoRA {np.mean(step_0):.2f}"
    )


MEMORISATION_RATIO = Metric(
    "memorisation_ratio",
    higher_is_better=True,
    measure=memorisation_ratio,
    needs=frozenset({"references", "training", "held_out"}),
    alarm=memorised,
    at_once=True,
)
