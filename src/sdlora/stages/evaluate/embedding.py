"""Pictures and prompts as vectors, by pretrained networks from a folder or the hub."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdlora.errors import DataError
from sdlora.stages.evaluate import weights
from sdlora.stages.evaluate.metric import Floats, Pixels
from sdlora.stages.evaluate.recipe import MeasuringRecipe

Vectors = NDArray[np.float64]  # (n, width), each of length 1
#: Pictures looked at in one pass: on a CPU one, whose last digits then depend on no other; on a GPU always as many, the
#: last pass filled up, so that they do not depend on how many there are.
BATCH = {"cpu": 1, "cuda": 16}


class Embedder:
    """A network that looks at each different picture once.

    Args:
        folder: As transformers saves it.
        threads: Of torch; the last digits depend on it.

    Raises:
        DataError: If its weights cannot be read or are not whole.
    """

    classes: tuple[str, str]  # transformers' names of the network and of what prepares its pictures

    def __init__(self, folder: Path, threads: int) -> None:
        import torch  # asking what a metric needs must not wait for it
        import transformers
        from transformers.utils import logging

        from sdlora import determinism

        torch.set_num_threads(threads)
        determinism.choose(deterministic=True)
        logging.disable_progress_bar()
        network, processor = (getattr(transformers, name) for name in self.classes)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = _whole(network, folder).eval().requires_grad_(False).to(self._device)
        self._processor = processor.from_pretrained(folder)
        self._known: dict[str, Floats] = {}

    def pictures(self, pictures: Sequence[Pixels]) -> Vectors:
        """One vector a picture.

        Args:
            pictures: (H, W, 3) uint8 each; resized, cropped and normalised as the network's own config says.
        """
        keys = [sha256(f"{picture.shape}".encode() + picture.tobytes()).hexdigest() for picture in pictures]
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self._known}
        size = BATCH[self._device.type]
        for first in range(0, len(new), size):
            batch = [*new.items()][first : first + size]
            filled = [*batch, *batch[-1:] * (size - len(batch))]
            found = self._look([Image.fromarray(picture) for _, picture in filled])
            self._known |= {key: vector for (key, _), vector in zip(batch, found, strict=False)}
        return np.array([self._known[key] for key in keys])

    def _look(self, pictures: list[Image.Image]) -> Vectors:
        import torch

        pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return unit(self._embed(pixels.to(self._device)))

    def _embed(self, pixels: Any) -> Any:
        raise NotImplementedError


class Clip(Embedder):
    """CLIP (Radford et al., arXiv 2103.00020): pictures and texts in one space."""

    classes = ("CLIPModel", "CLIPImageProcessorPil")

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads)
        self._folder = folder
        self._tokenizer: Any = None
        self._texts: dict[str, Floats] = {}

    def _embed(self, pixels: Any) -> Any:
        return self._network.get_image_features(pixel_values=pixels).pooler_output

    def prompts(self, prompts: Sequence[str]) -> Vectors:
        """One vector a prompt, each read alone; what is beyond the network's 77 tokens is cut off."""
        for prompt in prompts:
            if prompt not in self._texts:
                self._texts[prompt] = self._read(prompt)
        return np.array([self._texts[prompt] for prompt in prompts])

    def _read(self, prompt: str) -> Floats:
        import torch
        from transformers import CLIPTokenizer

        self._tokenizer = self._tokenizer or CLIPTokenizer.from_pretrained(self._folder)
        longest = self._network.config.text_config.max_position_embeddings
        tokens = self._tokenizer(prompt, truncation=True, max_length=longest, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            found: Floats = unit(self._network.get_text_features(**tokens).pooler_output)[0]
        return found


class Dinov2(Embedder):
    """DINOv2 (Oquab et al., arXiv 2304.07193): its class token, after the last layer norm."""

    classes = ("Dinov2Model", "BitImageProcessorPil")

    def _embed(self, pixels: Any) -> Any:
        return self._network(pixel_values=pixels).last_hidden_state[:, 0]


MADE_OF = {"clip": Clip, "dinov2": Dinov2}


def _whole(kind: Any, folder: Path) -> Any:
    """A network with all its weights: transformers would draw those that are missing at random."""
    import torch
    from safetensors import SafetensorError

    try:
        network, loading = kind.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder}: its weights cannot be read: {str(error).splitlines()[0]}") from None
    missing = sorted(loading["missing_keys"])
    if missing:
        raise DataError(
            f"{folder}: its weights are not whole: {len(missing)} tensors are missing, such as {missing[0]}"
        )
    return network


def unit(vectors: Any) -> Vectors:
    """A tensor's rows at length 1."""
    found = vectors.double().cpu().numpy()
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float64)


def cosines(one: Vectors, other: Vectors) -> Floats:
    """Of each row of two sets of vectors of length 1."""
    found: Floats = (one * other).sum(axis=1)
    return found


@cache
def _loaded(kind: str, folder: Path, threads: int) -> Embedder:
    return MADE_OF[kind](folder, threads)


def asks(setting: str) -> Callable[[MeasuringRecipe], Callable[[int, Sequence[Mapping[str, Any]]], dict[str, Any]]]:
    """A metric's `prepare`: the network that a setting names, loaded once for all metrics that ask it."""

    def prepare(recipe: MeasuringRecipe) -> Callable[[int, Sequence[Mapping[str, Any]]], dict[str, Any]]:
        network = recipe.networks[setting]
        embedder = _loaded(weights.KINDS[setting], weights.folder_of(setting, network), network.threads)
        return lambda step, rows: {setting: embedder}

    return prepare
