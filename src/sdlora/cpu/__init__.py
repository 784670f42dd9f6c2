"""What makes small networks fast on a CPU: weights packed once, passes traced once, freed memory kept.

`speed_up` is the only door. Without this folder, and with `Speed()` in place of that one call, everything computes the
same to rounding.
"""

from collections.abc import Sequence

import torch
from torch import nn

from sdlora.cpu import allocator, packed
from sdlora.speed import Passes, Speed


def speed_up(device: torch.device) -> Speed:
    """What makes work on a device faster; where it is no CPU, what passes through RAM takes little of it."""
    return CpuSpeed() if device.type == "cpu" else CardSpeed()


class CardSpeed(Speed):
    """Has glibc give back what weights of another type are converted in on their way to a card."""

    def before_loading(self) -> None:
        allocator.give_large_blocks_back()


class CpuSpeed(Speed):
    """Packs small networks, replays their passes, and has glibc keep what they free."""

    def before_loading(self) -> None:
        allocator.give_large_blocks_back()

    def built(self, network: nn.Module, loaded: bool) -> None:
        packed.pack(network)
        if loaded and packed.is_packed(network):
            allocator.keep_freed_blocks()

    def lora_added(self, network: nn.Module) -> None:
        packed.pack_lora(network)

    def memory_first(self) -> None:
        allocator.give_large_blocks_back()

    def kept_bytes(self, network: nn.Module, kind: torch.dtype = torch.float32) -> int:
        return packed.packed_bytes(network, kind)

    def passes(self, network: nn.Module, parameters: Sequence[nn.Parameter], after: int | None = None) -> Passes | None:
        if not packed.is_packed(network):  # in a large one, what is around the operations does not count
            return None
        from sdlora.cpu.replay import TRACED_AFTER, Replay  # brings torch's tracer, which only a training needs

        return Replay(parameters, TRACED_AFTER if after is None else after)
