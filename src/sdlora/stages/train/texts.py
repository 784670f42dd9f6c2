"""Text embeddings: kept in memory, kept on disk between runs, or made at each draw; the same bits each way."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from sdlora import choices, records, tensors
from sdlora.flow import hashing, store
from sdlora.flow.code import CODE_MEMORY, Code
from sdlora.models import Conditioning, ModelFamily

OPEN = 4096  # embeddings on disk: on a CPU each is a map of its file, of which a process has 65,530

#: Texts in, one row of conditioning a text out.
ConditioningOf = Callable[[Sequence[str]], Conditioning]


def stacked(rows: Sequence[Conditioning]) -> Conditioning:
    """Several prompts' conditioning as one, a row each."""
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def live(model: ModelFamily) -> ConditioningOf:
    """Encode at each call; the model's text encoders must stay in memory.

    Each text is encoded by itself, so that its embedding does not depend on its batch mates and is the
    one that a cache would hold.
    """
    return torch.no_grad()(lambda texts: stacked([model.encode_prompts([text]) for text in texts]))


def learning(
    model: ModelFamily, autocast: Callable[[], AbstractContextManager[None]], spoken: Callable[[str], str] | None
) -> ConditioningOf:
    """Encode at each call, with gradients for what the text encoders learn.

    Args:
        model: With its text encoders.
        autocast: The run's precision.
        spoken: Rewrites a caption before it is read (pivotal tuning's token for the trigger).
    """

    def conditioning_of(texts: Sequence[str]) -> Conditioning:
        with autocast():
            said = [spoken(text) if spoken else text for text in texts]
            return stacked([model.encode_tokens(model.tokenize([text])) for text in said])

    return conditioning_of


@torch.no_grad()
def cached(model: ModelFamily, texts: Sequence[str]) -> ConditioningOf:
    """Encode every text now and keep it in memory; the text encoders are not needed after."""
    return _lookup({text: model.encode_prompts([text]) for text in texts})


@torch.no_grad()
def on_disk(model: ModelFamily, texts: Sequence[str], identity: str, folder: Path) -> ConditioningOf:
    """Read every text's embedding from a folder that versions share; encode and write what is not there.

    Args:
        model: Encodes what is new.
        texts: Everything that will be asked for.
        identity: Which weights the text encoders have.
        folder: `<key>.safetensors` each; may be deleted where no training reads it, and is by `store.drop_unused`.

    Returns:
        What `cached` returns; no more than `OPEN` are open at once, those that were asked for last.
    """
    paths: dict[str, Path] = {}
    new, device = 0, model.device

    @lru_cache(OPEN)
    def row_of(text: str) -> Conditioning:
        return {name: value.to(device) for name, value in tensors.read(paths[text]).items()}

    for text in texts:
        paths[text] = folder / f"{text_key(model, text, identity)}.safetensors"
        if not tensors.is_whole(paths[text]):
            row = model.encode_prompts([text])
            tensors.write(paths[text], {name: value.cpu() for name, value in row.items()})
            new += 1
        os.utime(paths[text])
        if len(paths) <= OPEN:
            row_of(text)
    store.drop_unused(folder)
    print(f"train: {new} captions encoded, {len(paths) - new} already in the cache", flush=True)
    return lambda texts: stacked([row_of(text) for text in texts])


def text_key(model: ModelFamily, text: str, identity: str) -> str:
    """Name of a text's embedding: the text and everything else its bits depend on."""
    return key_of(model, identity, Path(__file__), {"text": text})


def key_of(model: ModelFamily, identity: str, module: Path, asked: Mapping[str, object]) -> str:
    """Name of something that a base made: what it was asked, and everything else its bits depend on.

    Args:
        model: The base.
        identity: Which weights it has.
        module: The source file that makes it.
        asked: What it is made of.
    """
    depends_on = {
        **asked,
        "weights": identity,
        "family": model.base.family,
        "dtype": str(model.dtype),
        "device": _device(model),
        "threads": torch.get_num_threads(),
        "software": {name: version(name) for name in ("diffusers", "torch", "transformers")},
        "code": _code(module, model.base.family),
    }
    return hashing.sha256_text(records.canonical_json(depends_on))[:32]


def _device(model: ModelFamily) -> str:
    """What computes: a card by its name, and whether it may choose faster sums that differ from time to time."""
    if model.device.type != "cuda":
        return str(model.device.type)
    exactly = "exactly" if torch.are_deterministic_algorithms_enabled() else "freely"
    return f"{torch.cuda.get_device_name(model.device)}, {exactly}"


@cache
def _code(module: Path, family: str) -> str:
    """Identity of the code of a module and of a family."""
    return Code(CODE_MEMORY).reach(module, [choices.FAMILIES[family]]).identity


def _lookup(rows: Mapping[str, Conditioning]) -> ConditioningOf:
    return lambda texts: stacked([rows[text] for text in texts])
