"""Peak signal-to-noise ratio."""

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio

CEILING_DB = 100.0


def psnr_db(image: NDArray[np.uint8], reference: NDArray[np.uint8], data_range: float = 255) -> float:
    """PSNR in dB (scikit-image); higher is nearer.

    Args:
        image: (H, W, 3) uint8.
        reference: The same shape.
        data_range: Largest minus smallest possible value.

    Returns:
        dB; equal pictures give 100 instead of infinity, so that means stay finite.
    """
    if np.array_equal(image, reference):
        return CEILING_DB
    return min(CEILING_DB, float(peak_signal_noise_ratio(reference, image, data_range=data_range)))
