"""A draw's caption: shuffled tags, dropped tags, dropped captions; decided by (seed, draw, id) alone."""

from collections.abc import Sequence

import torch

from sdlora.config.train import Train
from sdlora.errors import DataError
from sdlora.models import ModelFamily
from sdlora.randomness import generator, uniform

MAX_TOKENS = 75  # that CLIP's text encoder reads, beside the two that mark begin and end


def drawn_caption(caption: str, settings: Train, draw: int, picture: str) -> str:
    """The caption as one draw sees it.

    The first `keep_tokens` tags stay where they are, so the trigger, which comes first, is always there;
    only `caption_dropout` takes it away, together with everything else.
    """
    seed = settings.seed
    if settings.caption_dropout and uniform("caption_dropout", seed, draw, picture) < settings.caption_dropout:
        return ""
    if not settings.changes_tags:
        return caption
    tags = [tag.strip() for tag in caption.split(",")]
    kept, rest = tags[: settings.keep_tokens], tags[settings.keep_tokens :]
    if settings.shuffle_tags:
        order = torch.randperm(len(rest), generator=generator("tags", seed, draw, picture)).tolist()
        rest = [rest[place] for place in order]
    # by the tag itself, not by its place, so that dropping does not depend on shuffling
    rest = [tag for tag in rest if uniform("tag_dropout", seed, draw, picture, tag) >= settings.tag_dropout]
    return ", ".join(kept + rest)


def all_captions(captions: Sequence[str], settings: Train) -> list[str]:
    """Every text that draws of fixed captions can see, sorted."""
    empty = [""] if settings.caption_dropout else []
    return sorted({*captions, *empty})


def check_lengths(model: ModelFamily, captions: Sequence[str], trigger: str = "") -> list[str]:
    """Warn of captions whose end the text encoder never sees.

    Returns:
        The captions that are too long, longest first.

    Raises:
        DataError: If the trigger alone is too long: it would be cut off in every caption.
    """
    if trigger and (tokens := model.token_counts([trigger])[0]) > MAX_TOKENS:
        raise DataError(
            f"datasets.<name>.trigger: {trigger!r} has {tokens} tokens, but the text encoder reads {MAX_TOKENS}"
        )
    counts = dict(zip(captions, model.token_counts(list(captions)), strict=True))
    long = sorted((text for text in counts if counts[text] > MAX_TOKENS), key=lambda text: (-counts[text], text))
    if long:
        print(
            f"train: warning: {len(long)} of {len(counts)} captions are longer than {MAX_TOKENS} tokens, and what "
            f"comes after is not seen; the longest has {counts[long[0]]}: {long[0]!r}",
            flush=True,
        )
    return long
