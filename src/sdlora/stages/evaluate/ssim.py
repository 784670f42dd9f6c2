"""Structural similarity."""

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity


def ssim(image: NDArray[np.uint8], reference: NDArray[np.uint8], data_range: float = 255) -> float:
    """Mean SSIM with Wang's settings (Wang et al. 2004, doi:10.1109/TIP.2003.819861), scikit-image.

    An 11 x 11 Gaussian window of sigma 1.5, population covariance, each colour channel by itself.

    Args:
        image: (H, W, 3) uint8, at least 11 px a side.
        reference: The same shape.
        data_range: Largest minus smallest possible value.

    Returns:
        A number of at most 1; higher is nearer.
    """
    return float(
        structural_similarity(
            reference,
            image,
            data_range=data_range,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
