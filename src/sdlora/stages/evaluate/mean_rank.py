"""Several metrics as one, where `evaluate.choose_by` names several."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from sdlora.stages.evaluate.metric import Floats, Metric
from sdlora.stages.evaluate.tables import Values

NAME = "mean_rank"


def mean_ranks(values: Values, metrics: Mapping[str, Metric], names: Sequence[str]) -> Values:
    """Each step's rank among all steps, step 0 included, on each reference, as the mean over some metrics.

    A rank has no unit, so metrics of any scale count alike (mean ranks of several measures over cases, as in Friedman
    1937, doi:10.1080/01621459.1937.10503522). Within a reference, so that test references keep to themselves.

    Args:
        values: One value a reference.
        metrics: What was measured, by name.
        names: The metrics that count.

    Returns:
        One rank a reference for each step, 1 = the best; ties share theirs.
    """
    steps = sorted({step for _, step in values})
    ranks: list[Floats] = []
    for name in names:
        sign = -1 if metrics[name].higher_is_better else 1
        table = sign * np.array([values[name, step] for step in steps])
        ranks.append(np.asarray(rankdata(table, axis=0), dtype=np.float64))
    means = np.mean(ranks, axis=0)
    return {(NAME, step): row.tolist() for step, row in zip(steps, means, strict=True)}


def _of_no_picture(*_: Any) -> Floats:
    raise ValueError(f"{NAME} is made of other metrics' values, not of pictures")


MEAN_RANK = Metric(NAME, higher_is_better=False, measure=_of_no_picture, needs=frozenset())
