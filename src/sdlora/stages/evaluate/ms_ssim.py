"""Structural similarity at several scales."""

import numpy as np

from sdlora.stages.evaluate.metric import Floats, Metric, Pixels, pairwise

# Wang et al. 2003, section 3.2: contrast and structure at scales 1 to 5, luminance at the last.
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW_PX, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def scales_of(side_px: int) -> int:
    """At how many scales a picture is compared: halved as long as the window fits, 5 times at most.

    A side of 64 px gives 3, of 128 px 4, of 176 px and more the paper's 5.
    """
    return sum(side_px >> scale >= WINDOW_PX for scale in range(len(WEIGHTS)))


def ms_ssim(image: Pixels, reference: Pixels) -> float:
    """MS-SSIM (Wang, Simoncelli and Bovik 2003, doi:10.1109/ACSSC.2003.1292216, eq. 7), each channel by itself.

    A picture too small for five scales gets the first of them, with their weights scaled to sum 1; one scale alone is
    SSIM. Halved by the mean of 2 x 2 pixels. A negative mean of contrast and structure counts as 0, as its power is
    not real.

    Args:
        image: (H, W, 3) uint8, at least 11 px a side.
        reference: The same shape.

    Returns:
        A number of at most 1; higher is nearer.

    Raises:
        ValueError: If the window does not fit into the picture.
    """
    scales = scales_of(min(image.shape[:2]))
    if not scales:
        raise ValueError(f"a picture of shape {image.shape} is smaller than the window of {WINDOW_PX} px")
    one, other = image.astype(np.float64), reference.astype(np.float64)
    weights = np.array(WEIGHTS[:scales]) / sum(WEIGHTS[:scales])
    product: Floats = np.ones(image.shape[2])
    for scale, weight in enumerate(weights):
        last = scale == scales - 1
        whole, structure = _similarities(one, other)
        found = whole if last else structure
        product *= (found if scales == 1 else np.maximum(found, 0.0)) ** weight
        if not last:
            one, other = _halved(one), _halved(other)
    return float(product.mean())


def _similarities(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """Means of SSIM, and of its contrast and structure alone, one a channel; only where the whole window fits."""
    from scipy.ndimage import gaussian_filter  # asking what a metric needs must not wait for it

    edge = WINDOW_PX // 2

    def blurred(values: Floats) -> Floats:
        smooth: Floats = gaussian_filter(values, SIGMA, radius=edge, axes=(0, 1))
        return np.asarray(smooth[edge:-edge, edge:-edge])

    mean_one, mean_other = blurred(one), blurred(other)
    variances = blurred(one * one) - mean_one**2 + blurred(other * other) - mean_other**2
    covariance = blurred(one * other) - mean_one * mean_other
    structure = (2 * covariance + C2) / (variances + C2)
    luminance = (2 * mean_one * mean_other + C1) / (mean_one**2 + mean_other**2 + C1)
    whole: Floats = (luminance * structure).mean(axis=(0, 1))
    return whole, structure.mean(axis=(0, 1))


def _halved(values: Floats) -> Floats:
    height, width = (side // 2 * 2 for side in values.shape[:2])
    blocks = values[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return np.asarray(blocks.mean(axis=(1, 3)))


MS_SSIM = Metric("ms_ssim", higher_is_better=True, measure=pairwise(ms_ssim))
