"""What a base is measured by, as functions of pictures, features and captions alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdlora.stages.evaluate import effnet
from tools.tiny_base.pictures import Pixels

CANDIDATES = 20

Matrix = NDArray[np.float64]


def style_of(caption: str) -> str:
    """The style a caption names first."""
    return caption.split(",")[0]


def pixel_distances(drawn: Sequence[Image.Image], truths: Pixels) -> Matrix:
    """Mean squared difference of every drawing (row) and truth (column)."""
    known = truths.astype(np.float64)
    return np.stack([np.square(known - np.asarray(picture, np.float64)).mean(axis=(1, 2, 3)) for picture in drawn])


def feature_distances(drawn: Sequence[Image.Image], truths: Pixels) -> Matrix:
    """EffNet-Lite0 feature distance of every drawing (row) and truth (column)."""
    known = [effnet.features(truth) for truth in truths]
    found = [effnet.features(np.asarray(picture)) for picture in drawn]
    return np.array([[effnet.distance(one, other) for other in known] for one in found])


def nearest_shares(distances: Matrix, captions: Sequence[str], only: Sequence[bool] | None = None) -> dict[str, float]:
    """How often the nearest truth is the drawing's own, and of its style.

    Args:
        distances: (drawings, truths); drawing n was asked for what truth n shows.
        captions: Of the truths; the style is what each says first.
        only: Which drawings count; None: all. The others stay candidates.

    Returns:
        `own`: among 20 of the same style (its own and up to 19 others; chance about 0.05).
        `style`: among all truths.
    """
    own, right_style = [], []
    for number, distance in enumerate(distances):
        if only is not None and not only[number]:
            continue
        right_style.append(style_of(captions[int(distance.argmin())]) == style_of(captions[number]))
        others = [n for n, text in enumerate(captions) if n != number and style_of(text) == style_of(captions[number])]
        candidates = [number, *others[: CANDIDATES - 1]]
        own.append(candidates[int(distance[candidates].argmin())] == number)
    return {"own": round(float(np.mean(own)), 4), "style": round(float(np.mean(right_style)), 4)}


def same_style(said: Sequence[str], captions: Sequence[str]) -> float:
    """Share of captions that say the style of the true one."""
    return round(
        float(np.mean([style_of(one) == style_of(other) for one, other in zip(said, captions, strict=True)])), 4
    )


def attribute_f1(said: Sequence[str], truth: Sequence[str], aside: Sequence[str] = ()) -> float:
    """Mean F1 of the sets of attributes of each caption: what stands between commas, whole.

    Args:
        said: What was answered.
        truth: What is to be seen.
        aside: Nouns whose attributes are left out on both sides ('straw hat', 'cap').
    """

    def attributes(caption: str) -> set[str]:
        parts = {part.strip() for part in caption.split(",") if part.strip()}
        return {part for part in parts if not any(part == noun or part.endswith(f" {noun}") for noun in aside)}

    scores = []
    for one, other in zip(said, truth, strict=True):
        a, b = attributes(one), attributes(other)
        scores.append(2 * len(a & b) / max(1, len(a) + len(b)))
    return round(float(np.mean(scores)), 4)


def feature_vectors(pictures: Sequence[Image.Image] | Pixels) -> Matrix:
    """EffNet-Lite0's last activations (N, C), mean over the picture."""
    found = [effnet.features(np.asarray(picture))[-1].mean(dim=(1, 2)).double().numpy() for picture in pictures]
    return np.stack(found)


def squared_distances(one: Matrix, other: Matrix) -> Matrix:
    """(N, M) squared Euclidean distances of the rows of (N, C) and (M, C)."""
    found = np.square(one).sum(1)[:, None] + np.square(other).sum(1)[None] - 2 * one @ other.T
    return np.asarray(np.maximum(found, 0.0))


def cmmd(drawn: Matrix, truths: Matrix) -> float:
    """Maximum mean discrepancy of two sets of features, squared, unbiased, times 1000.

    As CMMD (Jayasumana et al., arXiv 2401.09603) with a Gaussian kernel, on other features: its width is the median
    distance of the truths, so that the figure needs no scale. 0 for two samples of one distribution, in the mean;
    a single figure may be a little below.

    Args:
        drawn: (N, C).
        truths: (M, C), neither fewer than 2.
    """
    among = squared_distances(truths, truths)
    width = float(np.median(among[~np.eye(len(among), dtype=bool)]))

    def kernel(distances: Matrix) -> Matrix:
        return np.asarray(np.exp(-distances / (2 * width)))

    def within(features: Matrix) -> float:
        count = len(features)
        return float((kernel(squared_distances(features, features)).sum() - count) / (count * (count - 1)))

    across = float(kernel(squared_distances(drawn, truths)).mean())
    return round(1000 * (within(drawn) + within(truths) - 2 * across), 3)


def psnr_in(decoded: Pixels, truths: Pixels, boxes: Sequence[tuple[int, int, int, int] | None]) -> float:
    """Mean PSNR, dB, of the part of each picture that lies in its box; pictures without a box do not count.

    Args:
        decoded: (N, H, W, 3) uint8.
        truths: The same shape.
        boxes: Left, top, right, bottom, px; cut at the picture's edge.
    """
    found = []
    for one, other, box in zip(decoded, truths, boxes, strict=True):
        if box is not None:
            left, top, right, bottom = (max(0, edge) for edge in box)
            a, b = (part[top:bottom, left:right].astype(np.float64) for part in (one, other))
            found.append(10 * np.log10(255**2 / max(1e-9, float(np.square(a - b).mean()))))
    return round(float(np.mean(found)), 3)
