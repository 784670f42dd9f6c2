"""Optuna's part: which settings are tried next, which trial is hopeless, and a journal of what came of each.

A proposal is a function of the study's seed, the trial's number and the trials before it, and the journal holds
finished trials alone, a line each: a command that is killed loses none and, started again, proposes what it would have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from sdlora.config.search import JOURNAL, Study
from sdlora.flow.hashing import sha256_text
from sdlora.search.space import Key, Range, Space, Values, spelt

LEFT_OUT = "left out by hand"
ATTEMPTS = 20  # to propose what no trial has tried
NOT_ALLOWED = "not allowed: "  # and the sentence that refuses the settings

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Outcome:
    """What came of a trial."""

    number: int
    params: dict[Key, Any]  # of the keys that differ between trials
    value: float | None  # the metric at the chosen checkpoint; None where it was not trained to its end
    chosen: int | None = None  # that checkpoint
    on_the_way: Mapping[int, float] | None = None  # the metric at checkpoints where trials are given up
    base: float | None = None  # the metric without a LoRA
    why: str = ""  # there is no value
    run: str | None = None  # the training's key in the store

    @property
    def tried(self) -> str:
        """What it tried, in words."""
        return ", ".join(f"{key} {spelt(value)}" for key, value in self.params.items())

    @property
    def is_refused(self) -> bool:
        """Whether no version may have these settings, so that none was made of them."""
        return self.why.startswith(NOT_ALLOWED)


class Journal:
    """A study's finished trials in `journal.log`, and what Optuna makes of them.

    Args:
        folder: `searches/<name>`; whoever opens it holds the study's lock.
        study: What is searched.
        space: Its keys.
        maximise: Whether higher is better.
        first: What trial 0 tries; None where it is proposed as any other.
    """

    def __init__(
        self, folder: Path, study: Study, space: Space, maximise: bool, first: Mapping[Key, Any] | None = None
    ) -> None:
        path = folder / JOURNAL
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)  # of a process that was killed
        _drop_half_a_line(path)
        self._study, self._space, self._first = study, space, first
        self._direction, self._sign = ("maximize", -1) if maximise else ("minimize", 1)
        self._distributions = {key: _distribution(axis) for key, axis in space.varied.items()}
        self._kept = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=folder.name,
            direction=self._direction,
            load_if_exists=True,
        )

    @property
    def definition(self) -> dict[str, Any]:
        """What the study was when it began; empty before."""
        found: dict[str, Any] = self._kept.user_attrs.get("definition", {})
        return found

    def begin(self, definition: Mapping[str, Any]) -> None:
        """Write down what the study is."""
        self._kept.set_user_attr("definition", dict(definition))

    @property
    def told(self) -> list[Outcome]:
        """Every trial that came to an end."""
        return [self._outcome(trial) for trial in self._kept.get_trials(deepcopy=False)]

    def tell(self, outcome: Outcome) -> None:
        """Write down what came of the next trial: one line, whole or not at all."""
        state = TrialState.PRUNED if outcome.value is None else TrialState.COMPLETE
        if outcome.why == LEFT_OUT:  # nothing is known of these settings
            state = TrialState.FAIL
        facts = {"chosen": outcome.chosen, "base": outcome.base, "why": outcome.why, "run": outcome.run}
        self._kept.add_trial(
            create_trial(
                state=state,
                value=outcome.value,
                params=self._categories(outcome.params),
                distributions=self._distributions,
                intermediate_values=dict(outcome.on_the_way or {}),
                user_attrs=facts,
            )
        )

    def propose(self, number: int, first: int, mates: Sequence[Mapping[Key, Any]]) -> dict[Key, Any]:
        """What trial `number` tries: settings that no trial before it has, where some are found.

        Args:
            number: The trial.
            first: The first of its batch: what is known are the trials before.
            mates: What the trials of its batch before it try.
        """
        if number == 0 and self._first is not None:
            return dict(self._first)
        tried = [*(one.params for one in self.told[:first]), *mates]
        for attempt in range(1 if self._study.grid else ATTEMPTS):  # a grid's order is the same at each
            found = self._drawn(number, first, mates, attempt)
            if found not in tried:  # what was tried would teach nothing
                return found
        known = [*(one.params for one in self.told[:first] if one.why != LEFT_OUT), *mates]
        left = [one for one in self._space.every() if one not in known]
        return next((one for one in left if one not in tried), left[0] if left else found)

    def _drawn(self, number: int, first: int, mates: Sequence[Mapping[Key, Any]], attempt: int) -> dict[Key, Any]:
        """What Optuna proposes for a trial at an attempt."""
        draft = self._draft(first, number, attempt)
        for mate in mates:
            draft.add_trial(
                create_trial(state=TrialState.RUNNING, params=self._categories(mate), distributions=self._distributions)
            )
        found = self._meant(draft.ask(self._distributions).params)
        ranges = {key: axis for key, axis in self._space.varied.items() if isinstance(axis, Range)}
        return {**found, **{key: axis.round(found[key]) for key, axis in ranges.items()}}

    def can_give_up(self, first: int) -> bool:
        """Whether enough trials before a batch are finished for one to be called hopeless."""
        finished = [one for one in self.told[:first] if one.value is not None]
        return len(finished) >= self._study.startup

    def is_hopeless(self, first: int, params: Mapping[Key, Any], on_the_way: Mapping[int, float]) -> bool:
        """Whether a trial at its last checkpoint is worse than the median there of those that finished before.

        Not one that has an earlier checkpoint which is better than what half of them came to: it would come to that.
        """
        last = max(on_the_way)
        trial = create_trial(
            state=TrialState.RUNNING,
            params=self._categories(params),
            distributions=self._distributions,
            intermediate_values={last: on_the_way[last]},  # of several the pruner takes the best
        )
        pruner = optuna.pruners.MedianPruner(n_startup_trials=self._study.startup)
        if not pruner.prune(self._draft(first), trial):
            return False
        came_to = [one.value for one in self.told[:first] if one.value is not None]
        return min(self._sign * value for value in on_the_way.values()) >= self._sign * median(came_to)

    def best(self) -> Outcome | None:
        """The trial with the best value, the first of equal ones."""
        finished = [one for one in self.told if one.value is not None]
        return min(finished, key=lambda one: self._sign * (one.value or 0.0), default=None)

    def importances(self) -> dict[Key, float]:
        """Each key's share in how far the better trials lie from the others (PED-ANOVA, 2304.10255); none for few."""
        finished = self._kept.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len({trial.value for trial in finished}) < 4:
            return {}
        found: dict[Key, float] = optuna.importance.get_param_importances(self._kept)
        return found

    def _draft(self, first: int, number: int = 0, attempt: int = 0) -> optuna.Study:
        """The study before a trial, in memory."""
        study = self._study
        again = f" {attempt}" if attempt else ""
        seed = int(sha256_text(f"search {study.seed} {number}{again}")[:8], 16)
        sampler: optuna.samplers.BaseSampler
        if study.grid:
            lists = {key: axis.categories for key, axis in self._space.varied.items() if isinstance(axis, Values)}
            sampler = optuna.samplers.GridSampler(lists, seed=study.seed)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=study.startup)
        draft = optuna.create_study(direction=self._direction, sampler=sampler)
        draft.add_trials(self._kept.get_trials(deepcopy=False)[:first])
        return draft

    def _categories(self, params: Mapping[Key, Any]) -> dict[Key, Any]:
        """Values as Optuna keeps them."""
        axes = self._space.varied
        return {
            key: value if isinstance(axis := axes[key], Range) else axis.categories[axis.index(value)]
            for key, value in params.items()
        }

    def _meant(self, kept: Mapping[Key, Any]) -> dict[Key, Any]:
        """What Optuna proposes or keeps, as values of the keys."""
        return {
            key: kept[key] if isinstance(axis, Range) else axis.values[axis.categories.index(kept[key])]
            for key, axis in self._space.varied.items()
        }

    def _outcome(self, trial: FrozenTrial) -> Outcome:
        params = self._meant(trial.params)
        value = trial.value if trial.state == TrialState.COMPLETE else None
        return Outcome(trial.number, params, value, on_the_way=trial.intermediate_values, **trial.user_attrs)


def _drop_half_a_line(path: Path) -> None:
    """Cut off what a process that was killed, or a full disk, left of a line."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("r+b") as handle:
            handle.truncate(text.rfind(b"\n") + 1)


def _distribution(axis: Range | Values) -> optuna.distributions.BaseDistribution:
    if isinstance(axis, Values):
        return optuna.distributions.CategoricalDistribution(axis.categories)
    kind = optuna.distributions.IntDistribution if axis.whole else optuna.distributions.FloatDistribution
    step = {"step": axis.step} if axis.step is not None else {}
    return kind(axis.low, axis.high, log=axis.log, **step)
