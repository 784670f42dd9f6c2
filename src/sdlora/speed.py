"""Where work on a device may be made faster by somebody who knows the device; whoever works asks here."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Passes(Protocol):
    """Another way to a batch's loss and gradients, of the same numbers as autograd's."""

    def run(self, batch: Any, loss_of: Callable[[Any], Tensor]) -> Tensor | None:
        """Add a batch's gradients to the parameters' and return its loss; None where autograd has to do it.

        Args:
            batch: A dataclass of tensors, and of dictionaries of tensors.
            loss_of: A batch's loss, always the same: a function of the batch and the parameters alone,
                without randomness and without branches on values.
        """


class Speed:
    """What is done for a device beside the work itself. This one does nothing: everything is plain PyTorch."""

    def before_loading(self) -> None:
        """A base's weights are about to be read."""

    def built(self, network: nn.Module, loaded: bool) -> None:
        """A frozen network is there.

        Args:
            network: The denoiser. Its layers may become other classes with the same parameters.
            loaded: Whether it has weights; without them its memory is predicted.
        """

    def lora_added(self, network: nn.Module) -> None:
        """peft's layers were put into a network that was `built`."""

    def memory_first(self) -> None:
        """From here on memory is worth more than time."""

    def kept_bytes(self, network: nn.Module, kind: torch.dtype = torch.float32) -> int:
        """What is kept beside a network's weights once every layer was used in a type."""
        return 0

    def passes(self, network: nn.Module, parameters: Sequence[nn.Parameter], after: int | None = None) -> Passes | None:
        """Faster passes for a training whose steps are the same operations each time.

        Args:
            network: The denoiser, with its LoRA.
            parameters: Those whose gradients are wanted, changed only in place.
            after: How many batches of a shape are left to autograd first; None is as many as it pays to leave.
        """
        return None
