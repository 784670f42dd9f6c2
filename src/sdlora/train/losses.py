"""Losses: what the prediction's error weighs."""

from torch import Tensor


def masked_mean(per_element: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of each sample over the cells that are learnt.

    Args:
        per_element: (B, C, h, w).
        mask: (B, 1, h, w), weights in [0, 1], not all zero in any sample; None weighs all cells alike.

    Returns:
        (B,). Cells of weight 0 have no part in it: their gradient is exactly zero.
    """
    if mask is None:
        return per_element.mean(dim=(1, 2, 3))
    return (per_element * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) * per_element.shape[1])
