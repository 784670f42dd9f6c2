"""Captions by BLIP."""

from typing import Any

from PIL import Image

from sdlora import weights
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

    def caption(self, picture: Image.Image) -> str:
        """One picture's caption.

        Pictures are described one by one: in a batch, the last digits of a picture's features, and with
        them its words, could depend on its neighbours, so adding a picture could change another's caption.
        """
        import torch

        self._loaded = self._loaded or self._load()
        processor, model = self._loaded
        inputs = processor(images=[picture], return_tensors="pt").to(model.device)
        with torch.inference_mode():
            tokens = model.generate(
                **inputs, max_new_tokens=self._settings.max_new_tokens, num_beams=self._settings.num_beams
            )
        return tidy(processor.batch_decode(tokens, skip_special_tokens=True)[0])


def tidy(text: str) -> str:
    """BLIP's words without the tokenizer's spaces before punctuation."""
    return " ".join(text.split()).replace(" ,", ",").replace(" - ", "-").strip(" ,")
