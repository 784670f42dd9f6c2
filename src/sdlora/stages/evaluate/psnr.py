"""Peak signal-to-noise ratio."""

import numpy as np

from sdlora.stages.evaluate.metric import Metric, Pixels, pairwise

CEILING_DB = 100.0


def psnr_db(image: Pixels, reference: Pixels) -> float:
    """PSNR in dB (scikit-image) of pixels in 0 … 255; higher is nearer.

    Args:
        image: (H, W, 3) uint8.
        reference: The same shape.

    Returns:
        dB; equal pictures give 100 instead of infinity, so that means stay finite.
    """
    from skimage.metrics import peak_signal_noise_ratio  # asking what a metric needs must not wait for it

    if np.array_equal(image, reference):
        return CEILING_DB
    return min(CEILING_DB, float(peak_signal_noise_ratio(reference, image, data_range=255)))


PSNR_DB = Metric("psnr_db", higher_is_better=True, measure=pairwise(psnr_db))
