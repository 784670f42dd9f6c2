"""Pivotal tuning: the trigger stands for new tokens whose embeddings are learnt along with the LoRA."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sdlora import records
from sdlora.config.train import Pivotal
from sdlora.errors import DataError
from sdlora.lora.names import EMBEDDINGS, word_of

# Names that A1111 and ComfyUI look for in an SDXL embedding file.
PARTS = {"text_encoder": ("tokenizer", "clip_l"), "text_encoder_2": ("tokenizer_2", "clip_g")}


class LearntRows(nn.Module):
    """A token embedding in which some rows are parameters of their own."""

    def __init__(self, frozen: nn.Embedding, ids: list[int], start: Tensor) -> None:
        super().__init__()
        self.frozen, self.ids = frozen, ids
        self.vectors = nn.Parameter(start.detach().float().clone())

    @property
    def weight(self) -> Tensor:
        """The frozen table, for code that asks for its type or device."""
        return self.frozen.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (..., D) of token ids (...)."""
        found: Tensor = self.frozen(ids)
        for number, token in enumerate(self.ids):
            found = torch.where((ids == token)[..., None], self.vectors[number].to(found.dtype), found)
        return found


def token_of(trigger: str) -> str:
    """The token that stands for a trigger: 'pixel art avatar' -> '<pixel-art-avatar>'."""
    return f"<{word_of(trigger)}>"


def with_token(text: str, trigger: str) -> str:
    """A caption with the trigger's first mention replaced by its token; a part of another word is none."""
    return re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)", token_of(trigger), text, count=1, flags=re.IGNORECASE)


def spoken(trigger: str) -> Callable[[str], str]:
    """Rewrites captions so that they say the token."""
    return lambda text: with_token(text, trigger)


def _encoders(pipeline: Any) -> Iterator[tuple[str, Any, Any]]:
    for part, (tokenizer, name) in PARTS.items():
        if getattr(pipeline, part, None) is not None:
            yield name, getattr(pipeline, tokenizer, None), getattr(pipeline, part)


def add(pipeline: Any, settings: Pivotal, trigger: str) -> list[nn.Parameter]:
    """Add the trigger's tokens to tokenizers and text encoders.

    Each starts at the mean embedding of the trigger's own words, a little apart from the others.

    Returns:
        The embeddings to learn, one (vectors, D) for each text encoder.

    Raises:
        DataError: If the trigger has no word.
    """
    if token_of(trigger) == "<>":
        raise DataError(f"train.pivotal: the trigger {trigger!r} has no letter or digit to name its token by")
    learnt = []
    for _, tokenizer, encoder in list(_encoders(pipeline)):
        table = encoder.get_input_embeddings().weight
        words = tokenizer(trigger, add_special_tokens=False).input_ids
        mean = table[words].detach().float().mean(0)
        apart = torch.linspace(0.99, 1.01, settings.vectors)[:, None]
        _load(pipeline, tokenizer, encoder, trigger, mean.cpu() * apart)
        rows = LearntRows(
            encoder.get_input_embeddings(), _ids(tokenizer, trigger, settings.vectors), mean.cpu() * apart
        )
        encoder.set_input_embeddings(rows.to(table.device))
        learnt.append(rows.vectors)
    return learnt


def outline(pipeline: Any, settings: Pivotal) -> None:
    """The embeddings to learn as shapes alone, on the meta device: for the prediction of memory."""
    for _, _, encoder in _encoders(pipeline):
        table = encoder.get_input_embeddings()
        start = torch.empty(settings.vectors, table.weight.shape[1], device="meta")
        encoder.set_input_embeddings(LearntRows(table, [*range(settings.vectors)], start))


def _load(pipeline: Any, tokenizer: Any, encoder: Any, trigger: str, vectors: Tensor) -> None:
    pipeline.load_textual_inversion({token_of(trigger): vectors}, tokenizer=tokenizer, text_encoder=encoder)
    # The configs of OpenAI's CLIP and of SDXL name the wrong end (2), for which transformers pools at the highest id:
    # that would be the new token's.
    getattr(encoder, "text_model", encoder).eos_token_id = tokenizer.eos_token_id


def _ids(tokenizer: Any, trigger: str, vectors: int) -> list[int]:
    token = token_of(trigger)
    ids: list[int] = tokenizer.convert_tokens_to_ids([token, *(f"{token}_{n}" for n in range(1, vectors))])
    return ids


def write(folder: Path, pipeline: Any, trigger: str) -> Path:
    """Write the learnt embeddings beside the LoRA; the header names trigger and token."""
    tensors = {
        name: encoder.get_input_embeddings().vectors.detach().float().cpu().contiguous()
        for name, _, encoder in _encoders(pipeline)
    }
    path = folder / EMBEDDINGS
    records.write_bytes(path, save(tensors, metadata={"trigger": trigger}))
    return path


def attach_embeddings(pipeline: Any, path: Path) -> str:
    """Load learnt embeddings into a pipeline and return the trigger they stand for."""
    with safe_open(path, "pt") as file:
        trigger = str(file.metadata()["trigger"])
        for name, tokenizer, encoder in list(_encoders(pipeline)):
            _load(pipeline, tokenizer, encoder, trigger, file.get_tensor(name))
    return trigger


def detach_embeddings(pipeline: Any, trigger: str) -> None:
    """Take all of a trigger's tokens out again, so that the next checkpoint's can be put in."""
    own = re.compile(re.escape(token_of(trigger)) + r"(_\d+)?")
    for _, tokenizer, encoder in list(_encoders(pipeline)):
        tokens = [token for token in tokenizer.get_added_vocab() if own.fullmatch(token)]
        pipeline.unload_textual_inversion(tokens, tokenizer=tokenizer, text_encoder=encoder)
