"""Which checkpoint is best, by a rule that is written beside the answer."""

from typing import Any

import numpy as np

from sdlora import choices
from sdlora.config.params import Evaluate
from sdlora.stages.evaluate.tables import Values, difference, verdict


def best_step(values: Values, settings: Evaluate) -> int:
    """The trained step with the best mean of `choose_by`; the earliest of equals."""
    sign = -1 if settings.choose_by in choices.LOWER_IS_BETTER else 1
    means = {step: float(np.mean(v)) for (metric, step), v in values.items() if metric == settings.choose_by and step}
    return max(sorted(means), key=lambda step: sign * means[step])


def explain(values: Values, settings: Evaluate) -> dict[str, Any]:
    """The chosen step with its figures and their paired difference from step 0."""
    step = best_step(values, settings)
    steps = {s for _, s in values if s}
    figures = {
        metric: {
            "step_0": round(float(np.mean(values[metric, 0])), 4),
            "best": round(float(np.mean(values[metric, step])), 4),
            **difference(values[metric, step], values[metric, 0], settings.bootstrap_samples),
        }
        for metric in settings.metrics
    }
    gain = figures[settings.choose_by]
    extreme = "lowest" if settings.choose_by in choices.LOWER_IS_BETTER else "highest"
    references = len(values[settings.choose_by, 0])
    return {
        "best_step": step,
        "choose_by": settings.choose_by,
        "rule": f"{extreme} mean {settings.choose_by} of {len(steps)} checkpoints",
        "why": f"step {step}: mean {settings.choose_by} {gain['best']}, {gain['delta']:+} against step 0 "
        f"[{gain['ci_low']}, {gain['ci_high']}]; {verdict(gain, references)}",
        **figures,
    }
