"""Which algorithms torch may take: those that give the same bytes every time, or a GPU's fastest."""

import os

import torch


def choose(deterministic: bool) -> None:
    """Set torch's algorithms for the rest of the process, before it first uses a GPU.

    Args:
        deterministic: Only algorithms that repeat themselves to the byte; an operation that has none is
            an error. False lets a GPU add in any order and try which convolution is fastest.
    """
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS starts
        # filling what is not written yet finds mistakes and costs time
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
