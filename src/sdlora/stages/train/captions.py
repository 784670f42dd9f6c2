"""A draw's caption: shuffled tags, dropped tags, dropped captions; decided by (seed, draw, id) alone."""

from collections.abc import Sequence

import torch

from sdlora.config.train import Train
from sdlora.errors import DataError
from sdlora.models import ModelFamily
from sdlora.randomness import generator, uniform


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
    """Warn of captions whose end a text encoder never sees.

    Returns:
        The captions that are too long, longest first.

    Raises:
        DataError: If the trigger alone is too long: it would be cut off in every caption.
    """
    long: set[str] = set()
    # encoders that read equally much count alike: the first of them speaks for all
    limits = {limit: encoder for encoder, limit in reversed(model.token_limits().items())}
    for limit, encoder in sorted(limits.items()):
        who, by = ("the text encoder", "") if len(limits) == 1 else (encoder, f" by {encoder}")
        if trigger and (tokens := model.token_counts([trigger], encoder)[0]) > limit:
            raise DataError(f"datasets.<name>.trigger: {trigger!r} has {tokens} tokens, but {who} reads {limit}")
        counts = dict(zip(captions, model.token_counts(list(captions), encoder), strict=True))
        found = sorted((text for text in counts if counts[text] > limit), key=lambda text: (-counts[text], text))
        long |= {*found}
        if found:
            print(
                f"train: warning: {len(found)} of {len(counts)} captions are longer than {limit} tokens, and what "
                f"comes after is not seen{by}; the longest has {counts[found[0]]}: {found[0]!r}",
                flush=True,
            )
    return sorted(long, key=lambda text: (-len(text), text))
