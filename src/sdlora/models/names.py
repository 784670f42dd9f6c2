"""How a family's base and its layers are called outside diffusers: by kohya's trainer, A1111 and ComfyUI."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sdlora.errors import DataError


class NoKohyaForm(DataError):
    """A LoRA, or a tensor of it, that kohya's format has no name for."""


@dataclass(frozen=True)
class BaseVersion:
    """What files say about the base that a reader must have loaded."""

    name: str  # kohya's ss_base_model_version
    a1111: str  # A1111's "sd version"
    architecture: str  # modelspec.architecture
    implementation: str  # modelspec.implementation


@dataclass(frozen=True)
class KohyaForm:
    """A family's names in kohya's format.

    Attributes:
        prefixes: By the network's name in the pipeline; the denoiser's comes first.
        version: The base's version, from the width of the denoiser's cross-attention.
        module: A module of the denoiser, dotted, under its name there, dotted too; the second argument is the
            denoiser's `layers_per_block`. Raises `NoKohyaForm` for a module that has none.
        clip_skip: kohya's counting of the text encoder's layer that is read: 1 is the last.
    """

    prefixes: Mapping[str, str]
    version: Callable[[int], BaseVersion]
    module: Callable[[str, int], str] = lambda module, layers_per_block: module
    clip_skip: int = 1

    @property
    def denoiser(self) -> str:
        """The denoiser's name in the pipeline."""
        return next(iter(self.prefixes))
