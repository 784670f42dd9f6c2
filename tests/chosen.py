"""A choice among checkpoints whose values are stated."""

from sdlora import choices
from sdlora.config.evaluate import Evaluate
from sdlora.stages.evaluate.choose import choose, explain
from sdlora.stages.evaluate.mean_rank import MEAN_RANK, mean_ranks
from sdlora.stages.evaluate.metric import Metric
from sdlora.stages.evaluate.tables import (
    Table,
    Values,
)
from sdlora.stages.sample.parts import split

PSNR: Metric = choices.pick(choices.METRICS, "psnr_db")
EFFNET: Metric = choices.pick(choices.METRICS, "effnet_lite0_distance")
METRICS = {metric.name: metric for metric in (PSNR, EFFNET)}
BY_PSNR = Evaluate(metrics=("psnr_db",), choose_by="psnr_db", bootstrap_samples=1000)


def parts(values: Values, references: list[str] | None = None) -> tuple[Table, Table | None]:
    """The tables of both parts, where every step has pictures of either; the choice's are looked at alone."""
    names = references or [f"r{number:02}" for number in range(len(next(iter(values.values()))))]
    tables = [
        Table(part, {key: [found[names.index(name)] for name in part] for key, found in values.items()}, [42])
        for part in split(names, 0.5)
    ]
    return tables[0], tables[1] if tables[1].references else None


def explained(
    values: Values,
    settings: Evaluate = BY_PSNR,
    chosen: int | None = None,
    names: list[str] | None = None,
) -> dict[str, object]:
    """What the stages `choose` and `evaluate` say of some values."""
    metrics = {name: METRICS[name] for name in settings.metrics}
    validation, test = parts(values, names)
    choice = choose(validation, metrics, settings.choose_by, chosen)
    if test is not None:
        kept = {key: found for key, found in test.values.items() if key[1] in choice.steps}
        test = Table(test.references, kept, test.seeds)
    if len(settings.choose_by) > 1:
        for table in filter(None, (validation, test)):
            table.values.update(mean_ranks(table.values, metrics, settings.choose_by))
        metrics = {MEAN_RANK.name: MEAN_RANK, **metrics}
    return explain(validation, test, metrics, settings, choice)
