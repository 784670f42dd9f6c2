"""What a search is asked to do, and the versions that it makes: the files below `searches/`.

searches/<name>/study.yaml    what is searched, and by what: written by `sdlora search`, or by a person
searches/<name>/trials.yaml   the trials' settings: `params.yaml`'s reader takes them for versions
searches/<name>/journal.log   the trials that came to an end, as Optuna keeps them
"""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from sdlora import choices
from sdlora.config.evaluate import Evaluate
from sdlora.config.params import Version
from sdlora.config.sections import Name, Section, on_menu

FOLDER = Path("searches")  # beside params.yaml
MEASURED = Evaluate.model_fields["metrics"].default
STUDY, TRIALS, JOURNAL = "study.yaml", "trials.yaml", "journal.log"


class Study(Section):
    """What is searched: `searches/<name>/study.yaml`."""

    like: str = Field(description="the version of params.yaml whose settings trials have, except for what is searched")
    settings: dict[str, str | tuple[Any, ...]] = Field(
        min_length=1,
        description="key -> what it may be: [8, 16, 32], 1e-5..1e-3:log, 4..64, 100..900:step=100; one value is fixed",
    )
    by: str | None = Field(None, description="which metric; null = the version's own evaluate.choose_by")
    grid: bool = Field(False, description="every combination of lists, in an order that the seed shuffles; else TPE")
    seed: int = Field(42, ge=0, description="seed of the proposals")
    startup: int = Field(
        5,
        ge=1,
        description="trials before TPE learns, the version itself and random ones, and finished before one is given up",
    )
    prune_at: tuple[int, ...] | None = Field(
        None,
        description="checkpoints at which a hopeless trial is given up; [] = none; null = those nearest to a third and "
        "two thirds of the shortest training",
    )

    @field_validator("settings", mode="before")
    @classmethod
    def _one_value(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: said if isinstance(said, str | list | tuple) else (said,) for key, said in value.items()}


class Trials(Section):
    """The trials of a search: `searches/<name>/trials.yaml`."""

    like: str
    by: str
    prune_at: tuple[int, ...]
    batch: tuple[int, int] = (0, -1)  # the first and the last trial that are made now, or were made last
    trials: dict[Name, dict[str, Any]]  # what each states beside `like`, as a version does

    @field_validator("by")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        return on_menu(value, choices.METRICS)


class Trial(Version):
    """A version that a search has made."""

    prune_at: tuple[int, ...] = ()

    @property
    def probes(self) -> tuple[int, ...]:
        """The checkpoints at which it is measured on its way, and the last one."""
        *before, last = self.train.checkpoint_steps
        return (*(step for step in before if step in self.prune_at), last)


def trial_settings(version: dict[str, Any], by: str, prune_at: tuple[int, ...]) -> dict[str, Any]:
    """A version's resolved settings as a trial's: the study's metric chooses, and it is trained once.

    What is no section stays as it is, for whoever validates them.
    """
    found = {key: value for key, value in version.items() if key not in ("chosen", "remark")}
    evaluate, train = version.get("evaluate") or {}, version.get("train") or {}
    if isinstance(evaluate, dict):
        own = evaluate.get("metrics", MEASURED)
        metrics = (*own, *([] if by in own else [by])) if isinstance(own, tuple | list) else own
        found["evaluate"] = {**evaluate, "metrics": metrics, "choose_by": by}
    if isinstance(train, dict):
        found["train"] = {**train, "seeds": 1}
    return {**found, "prune_at": prune_at}
