"""Structural similarity."""

from sdlora.stages.evaluate.metric import Metric, Pixels, pairwise


def ssim(image: Pixels, reference: Pixels) -> float:
    """Mean SSIM with Wang's settings (Wang et al. 2004, doi:10.1109/TIP.2003.819861), scikit-image.

    An 11 x 11 Gaussian window of sigma 1.5, population covariance, each colour channel by itself.

    Args:
        image: (H, W, 3) uint8, at least 11 px a side.
        reference: The same shape.

    Returns:
        A number of at most 1; higher is nearer.
    """
    from skimage.metrics import structural_similarity  # asking what a metric needs must not wait for it

    return float(
        structural_similarity(
            reference,
            image,
            data_range=255,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


SSIM = Metric("ssim", higher_is_better=True, measure=pairwise(ssim))
