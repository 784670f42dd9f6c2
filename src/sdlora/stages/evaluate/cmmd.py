"""How far all samples of a checkpoint together are from all references."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sdlora.stages.evaluate.embedding import Vectors, asks
from sdlora.stages.evaluate.metric import Floats, Metric, Pixels

SIGMA = 10.0  # of the kernel
SCALE = 1000.0  # so that numbers are easy to read


def cmmd(samples: Sequence[Pixels], references: Sequence[Pixels], prompts: Sequence[str], cmmd_model: Any) -> Floats:
    """CMMD (Jayasumana et al., 2401.09603): squared maximum mean discrepancy of CLIP embeddings, times 1000.

    Gaussian kernel of sigma 10; the estimator with least variance (Gretton et al. 2012, equation 5), as in the paper's
    code, which is too large by about the same for equal numbers of pictures: compare no others.

    The distance is one number for all samples. Each sample gets its share in it, a pseudo-value of the infinitesimal
    jackknife (Efron 1982, doi:10.1137/1.9781611970319, chapter 6): the mean of all is the CMMD, and their spread over
    references, of which each is resampled with its samples, is that of the CMMD. A share alone is no distance, and
    may be negative.

    Args:
        samples: (H, W, 3) uint8 each.
        references: One for each sample.
        prompts: Not looked at.
        cmmd_model: A `Clip`; the paper's is ViT-L/14 at 336 px.

    Returns:
        One share a sample, whose mean is the CMMD, 0 or more; all 0 for equal pictures.
    """
    x, y = cmmd_model.pictures(samples), cmmd_model.pictures(references)
    among, between = _kernel(x, x) + _kernel(y, y), _kernel(x, y)
    of_pairs: Floats = SCALE * (among - between - between.T).mean(axis=1)
    shares: Floats = 2 * of_pairs - of_pairs.mean()
    return shares


def _kernel(a: Vectors, b: Vectors) -> Floats:
    """(n, m): exp(-|a - b|² / 2 sigma²)."""
    squares: Floats = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.exp(-squares / (2 * SIGMA**2))


CMMD = Metric(
    "cmmd",
    higher_is_better=False,
    measure=cmmd,
    needs=frozenset({"references", "cmmd_model"}),
    prepare=asks("cmmd_model"),
)
