"""Train one LoRA: the only loop, and what it is made of."""

from sdlora.stages.train.run import train_version

__all__ = ["train_version"]
