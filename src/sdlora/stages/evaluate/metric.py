"""What an entry of `choices.METRICS` is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdlora.config.evaluate import NETWORKS

Pixels = NDArray[np.uint8]  # (H, W, 3)
Floats = NDArray[np.float64]
PAIR = frozenset({"references"})
#: What a metric may ask for: each sample's reference, its prompt, several sampling seeds a prompt; and as keywords of
#: `measure` the pictures that were learnt from, all held-out ones, the base with the step's LoRA, the prompts' pictures
#: without the trigger, the captioner, the trigger, and the networks of `config.evaluate.NETWORKS`.
KEYWORDS = frozenset({"training", "held_out", "learner", "untriggered", "describe", "trigger", *NETWORKS})
NEEDS = frozenset({"references", "prompts", "seeds"}) | KEYWORDS
Given = Callable[[int, Sequence[Mapping[str, Any]]], dict[str, Any]]  # (step, rows of an index.jsonl) -> keywords


@dataclass(frozen=True)
class Metric:
    """One number a sample.

    Attributes:
        name: As in the menu; the unit is part of it.
        higher_is_better: Which way is up.
        measure: (samples, references, prompts) -> one value each; what else it needs by keyword.
        needs: Of `NEEDS`.
        alarm: Called with the chosen step's and step 0's values, one a reference, and the bootstrap's resamples; a
            sentence that warns the reader, or None.
        prepare: Called once with the job's recipe; gives the keywords of each step.
        at_once: Whether one call may have samples of several steps, for what else it looks at takes longer than they
            do; nothing is prepared for it.
    """

    name: str
    higher_is_better: bool
    measure: Callable[..., Floats]
    needs: frozenset[str] = PAIR
    alarm: Callable[[Sequence[float], Sequence[float], int], str | None] | None = None
    prepare: Callable[[Any], Given] | None = None
    at_once: bool = False

    @property
    def of_a_pair(self) -> bool:
        """Whether it compares one picture with another, and needs nothing else."""
        return self.needs == PAIR

    def __call__(
        self,
        samples: Sequence[Pixels],
        references: Sequence[Pixels],
        prompts: Sequence[str],
        **given: Any,
    ) -> Floats:
        """Measure samples, of one checkpoint unless it is measured `at_once`.

        Args:
            samples: (H, W, 3) uint8 each.
            references: What each sample is measured against, of its size.
            prompts: What each was drawn by.
            given: Of `KEYWORDS`, more than it needs or not.

        Returns:
            (n,) values.

        Raises:
            ValueError: If numbers, sizes or types do not fit: nothing is put right in silence.
        """
        if not len(samples) == len(references) == len(prompts):
            raise ValueError(f"{len(samples)} samples, {len(references)} references and {len(prompts)} prompts")
        for sample, reference in zip(samples, references, strict=True):
            check_pair(sample, reference)
        keywords = {name: value for name, value in given.items() if name in self.needs}
        return np.asarray(self.measure(samples, references, prompts, **keywords), dtype=np.float64)


def check_pair(image: Pixels, reference: Pixels) -> None:
    """Refuse what cannot be compared.

    Raises:
        ValueError: If a picture is not (H, W, 3) uint8, or sizes differ.
    """
    for pixels in (image, reference):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"a picture is {pixels.dtype} of shape {pixels.shape}; it must be uint8 (H, W, 3)")
    if image.shape != reference.shape:
        raise ValueError(f"a sample of shape {image.shape} cannot be compared with a reference of {reference.shape}")


def pairwise(compare: Callable[[Pixels, Pixels], float]) -> Callable[..., Floats]:
    """A measure that compares each sample with its own reference."""

    def measure(samples: Sequence[Pixels], references: Sequence[Pixels], prompts: Sequence[str]) -> Floats:
        return np.array([compare(sample, reference) for sample, reference in zip(samples, references, strict=True)])

    return measure
