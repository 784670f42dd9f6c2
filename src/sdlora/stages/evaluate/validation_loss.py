"""The loss that training minimises, on pictures that were held out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdlora.stages.evaluate.metric import Floats, Metric, Pixels
from sdlora.stages.evaluate.recipe import MeasuringRecipe


def validation_loss(
    samples: Sequence[Pixels], references: Sequence[Pixels], prompts: Sequence[str], learner: Any
) -> Floats:
    """Mean squared error of the base's prediction on each reference, with the checkpoint's LoRA on it.

    Noise and noise levels are a function of the reference alone: every checkpoint, and step 0, is asked the same (as in
    sd-scripts' validation, whose issue 1903 says why). Plain: no weighting, no mask, whatever the training had.

    Args:
        samples: Not looked at: it costs no drawing.
        references: Held-out pictures, at the base's size.
        prompts: Their captions.
        learner: A `Learner` with the checkpoint on it.

    Returns:
        One loss a sample, in the units of the training's log.
    """
    found: Floats = learner.losses(references, prompts)
    return found


def prepare(recipe: MeasuringRecipe) -> Callable[[int, Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """The base, loaded once; each step's LoRA put on it."""
    from sdlora.stages.evaluate.learner import Learner  # asking what a metric needs must not wait for torch

    asked = recipe.learning
    if asked is None:
        raise ValueError("validation_loss needs the base that was trained on")
    learner = Learner(asked.base, asked.lora_scale, asked.threads)

    def at(step: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        learner.use(recipe.lora_of(step))
        return {"learner": learner}

    return at


VALIDATION_LOSS = Metric(
    "validation_loss",
    higher_is_better=False,
    measure=validation_loss,
    needs=frozenset({"references", "prompts", "learner"}),
    prepare=prepare,
)
