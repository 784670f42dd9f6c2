"""Whether a sample shows what its prompt names, as the captioner sees it."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sdlora import choices
from sdlora.stages.evaluate.metric import Floats, Metric, Pixels
from sdlora.stages.evaluate.recipe import MeasuringRecipe

Describe = Callable[[Pixels], str]
LEAST_LETTERS = 3  # of a word that says something
SAY_NOTHING = frozenset({"and", "are", "for", "has", "that", "the", "with"})
MOST_WORDS = 4  # of an attribute; a longer phrase is a sentence, of which each word counts


def prompt_recall(
    samples: Sequence[Pixels],
    references: Sequence[Pixels],
    prompts: Sequence[str],
    describe: Describe,
    trigger: str,
) -> Floats:
    """Share of the attributes that a prompt names which the captioner finds in the sample.

    Where the dataset's captions are the captioner's own, this asks for the words it would use (a round trip, as in
    Hinz et al., arXiv 1910.13321, section 3, with attributes in place of objects). It sees no more than the captioner
    does: read it beside the share that the captioner finds in the references themselves.

    Args:
        samples: (H, W, 3) uint8 each.
        references: Not looked at.
        prompts: What each was drawn by.
        describe: The captioner.
        trigger: First in each prompt; no attribute.

    Returns:
        One share a sample, 0 to 1; 1 where a prompt names nothing.
    """
    values = []
    for sample, prompt in zip(samples, prompts, strict=True):
        wanted = attributes(prompt, trigger)
        seen = [words_of(phrase) for phrase in describe(sample).split(",")]
        found = [any(attribute <= phrase for phrase in seen) for attribute in wanted]
        values.append(float(np.mean(found)) if wanted else 1.0)
    return np.array(values)


def attributes(prompt: str, trigger: str) -> list[frozenset[str]]:
    """What a prompt names, without the trigger: its phrases between commas, and of a sentence its words."""
    found: list[frozenset[str]] = []
    for phrase in prompt.split(","):
        words = words_of(phrase) - words_of(trigger)
        found += [words] if len(words) <= MOST_WORDS else [frozenset({word}) for word in sorted(words)]
    return [attribute for attribute in dict.fromkeys(found) if attribute]


def words_of(phrase: str) -> frozenset[str]:
    """Its words of three letters and more, without those that say nothing."""
    return frozenset(re.findall(rf"\w{{{LEAST_LETTERS},}}", phrase.lower())) - SAY_NOTHING


def prepare(recipe: MeasuringRecipe) -> Callable[[int, Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """The dataset's captioner, loaded once; equal pictures are described once."""
    from PIL import Image

    asked = recipe.describing
    if asked is None:
        raise ValueError("prompt_recall needs the captioner of the base")
    kind = choices.pick(choices.CAPTIONERS, asked.caption.by)
    captioner = kind(asked.captioner, asked.captioner_revision, asked.caption, asked.threads)
    known: dict[bytes, str] = {}

    def describe(picture: Pixels) -> str:
        content = picture.tobytes()
        if content not in known:
            (known[content],) = captioner.captions([Image.fromarray(picture)])
        return known[content]

    return lambda step, rows: {"describe": describe, "trigger": asked.trigger}


PROMPT_RECALL = Metric(
    "prompt_recall",
    higher_is_better=True,
    measure=prompt_recall,
    needs=frozenset({"prompts", "describe", "trigger"}),
    prepare=prepare,
)
