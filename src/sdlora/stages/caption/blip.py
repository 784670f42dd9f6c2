"""Captions by BLIP."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from sdlora import gpu, weights
from sdlora.config.caption import Caption


class Blip:
    """A BLIP model (Li et al., arXiv 2201.12086), loaded when the first picture needs it."""

    def __init__(self, model: str, revision: str | None, settings: Caption, threads: int) -> None:
        self._model, self._revision, self._settings, self._threads = model, revision, settings, threads
        self._loaded: Any = None

    def _load(self) -> Any:
        import torch
        from transformers import BlipForConditionalGeneration, BlipProcessor
        from transformers.utils import logging

        torch.set_num_threads(self._threads)
        logging.disable_progress_bar()
        weights.refuse_others(self._model)
        try:
            options = {} if self._revision is None else {"revision": self._revision}
            processor = BlipProcessor.from_pretrained(self._model, **options)
            model = BlipForConditionalGeneration.from_pretrained(self._model, **options, use_safetensors=True)
        except weights.UNREADABLE as error:
            raise weights.refusal(self._model, self._revision, error) or weights.unreadable(
                weights.CAPTIONER, self._model, self._revision, error
            ) from None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return processor, model.float().eval().to(device)

    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Captions of pictures of any size, in their order, from one pass.

        The last digits of a picture's features, and with them its words, can depend on how many pictures are beside
        it, so adding a picture can change another's caption. A picture alone has always the same.

        Raises:
            ResourceError: If they do not fit into memory together.
        """
        import torch

        self._loaded = self._loaded or self._load()
        processor, model = self._loaded
        inputs = processor(images=list(pictures), return_tensors="pt").to(model.device)
        with torch.inference_mode(), gpu.told_when_it_fails(lambda: _smaller(self._settings)):
            tokens = model.generate(
                **inputs, max_new_tokens=self._settings.max_new_tokens, num_beams=self._settings.num_beams
            )
        return [tidy(text) for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def _smaller(settings: Caption) -> str:
    """What takes less memory while captioning."""
    found = {"batch_size": settings.batch_size, "num_beams": settings.num_beams}
    ways = [f"caption.{name}: 1 (it is {value})" for name, value in found.items() if value > 1]
    return f"less is taken by {' or '.join([*ways, 'a smaller bases.<name>.captioner'])}"


def tidy(text: str) -> str:
    """BLIP's words without the tokenizer's spaces before punctuation."""
    return " ".join(text.split()).replace(" ,", ",").replace(" - ", "-").strip(" ,")
