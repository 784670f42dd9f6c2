"""The command: ask what to try, let Snakemake make it, write down what came of it, and go on."""

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sdlora import choices
from sdlora.config.load import load, section_of, stated, trial_of
from sdlora.config.params import Params, Version
from sdlora.config.search import FOLDER, STUDY, TRIALS, Study, Trial, Trials
from sdlora.errors import DataError, ParamsError, suggest
from sdlora.flow import freshness, plan, store
from sdlora.flow.identity import differing, is_update, nested, told
from sdlora.flow.recipe import Recipe
from sdlora.search import page
from sdlora.search.batch import PARAMS, Batch, check_further, snakemake, write_yaml
from sdlora.search.itself import Itself, itself
from sdlora.search.journal import LEFT_OUT, Journal, Outcome
from sdlora.search.space import Key, Range, Space, space_of
from sdlora.search.unchanged import check_params, named
from sdlora.stages.probe.recipe import ProbeRecipe

TRIALS_BY_DEFAULT = 20


@dataclass(frozen=True)
class Asked:
    """What the command line says; None is what it does not say."""

    name: str
    study: Mapping[str, Any]  # fields of `Study`
    trials: int | None
    at_once: int
    leave_out: tuple[int, ...]
    snakemake: tuple[str, ...]  # further options

    @property
    def going_on(self) -> str:
        """The command that goes on with the study: it keeps all but how many trials are made, and where."""
        words = ["sdlora", "search", self.name]
        words += [] if self.trials is None else ["--trials", str(self.trials)]
        words += [] if self.at_once == 1 else ["--at-once", str(self.at_once)]
        return shlex.join([*words, *(["--", *self.snakemake] if self.snakemake else [])])


def run(asked: Asked) -> None:
    """Make the trials that are not there yet, then all of the best one, and the page.

    Raises:
        ParamsError: If what is asked cannot be searched, or is another search than the one of that name.
        DataError: If Snakemake stops, or another process is at work on the study.
        KeyboardInterrupt: With the command that goes on.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", asked.name):
        raise ParamsError(f"{asked.name!r} is no name of a search: letters, digits, and _ . - within")
    names = [path.name for path in FOLDER.glob("*")]
    for name in names if asked.name not in names else ():
        if name.casefold() == asked.name.casefold():  # on a Mac their folder would be one
            raise ParamsError(
                f"there is a search {name}, whose name differs in case alone: say {name}, or another name"
            )
    search = Search.of(asked)
    if asked.at_once >= search.params.keep_runs:  # they, and the best one so far
        raise ParamsError(
            f"--at-once is {asked.at_once}, but keep_runs is {search.params.keep_runs}: a trial that waits to go "
            f"on, or the best one, would be dropped; raise keep_runs in params.yaml"
        )
    search.check()
    check_further(asked.snakemake)
    with store.sole_use(store.entry("search", asked.name)):
        search.begin()
        try:
            search.make(asked)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; `{asked.going_on}` goes on") from None


@dataclass
class Search:
    """A study and what it is made of."""

    name: str
    study: Study  # every null replaced by what it means
    space: Space
    raw: dict[str, Any]  # what params.yaml states
    params: Params
    journal: Journal = field(init=False, repr=False)  # there from `begin` on, as the next
    known: Trials = field(init=False, repr=False)  # the trials so far, and those that are asked
    _noted: bool = field(default=False, init=False, repr=False)  # an update is told once

    @classmethod
    def of(cls, asked: Asked) -> "Search":
        """From the command line and the file, which must say the same."""
        params, raw = load(PARAMS), stated(PARAMS)
        study = _study(asked)
        if study.like not in raw["versions"]:
            raise ParamsError(f"params.yaml has no version {study.like!r}{suggest(study.like, raw['versions'])}")
        version = params.versions[study.like]
        space = space_of(study.settings, study.grid)
        found = cls(asked.name, study.model_copy(update={"by": _metric(study, version)}), space, raw, params)
        found.study = found.study.model_copy(update={"prune_at": found._prune_at()})
        return found

    @property
    def folder(self) -> Path:
        """Where the study is kept."""
        return FOLDER / self.name

    @property
    def maximise(self) -> bool:
        """Whether higher is better."""
        return bool(choices.pick(choices.METRICS, str(self.study.by)).higher_is_better)

    @property
    def definition(self) -> dict[str, Any]:
        """All that must stay as it was while trials are compared."""
        asked = self.study.model_dump(mode="json")
        version = self.params.versions[self.study.like].model_dump(mode="json", exclude={"remark", "chosen"})
        return {**asked, "settings": self.space.texts, "version": version}

    def trial_name(self, number: int) -> str:
        """The version of a trial."""
        return f"{self.name}-trial{number}"

    def trials(self, settings: Mapping[str, dict[str, Any]], batch: tuple[int, int] = (0, -1)) -> Trials:
        """What `trials.yaml` holds for some settings by name."""
        study = self.study
        return Trials(
            like=study.like, by=str(study.by), prune_at=study.prune_at or (), batch=batch, trials=dict(settings)
        )

    def settings(self, params: Mapping[Key, Any]) -> dict[str, Any]:
        """What a trial states, from what it tries."""
        return nested({**self.space.fixed, **params})

    def resolved(self, settings: Mapping[Key, Any]) -> Trial:
        """The version with some settings over its own, as a trial.

        Raises:
            ParamsError: If they are none that it may have.
        """
        return trial_of(self.raw, self.trials({"settings": nested(settings)}), "settings", self.folder / STUDY)

    @cached_property
    def itself(self) -> Itself:
        """The version as a trial: the first one, where it is among them."""
        return itself(self)

    def check(self) -> None:
        """Refuse what no trial could be, before anything runs.

        Raises:
            ParamsError: If no trial may have a value, or trials would be measured against different pictures.
        """
        version = self.params.versions[self.study.like]
        if version.lora is not None:
            raise ParamsError(f"version {self.study.like} names a LoRA from elsewhere: nothing is trained")
        name = self.space.fixed.get("dataset", version.dataset)
        dataset = self.params.datasets.get(name)  # a name that no dataset has is told below
        if dataset is not None and dataset.held_out == 0:
            raise ParamsError(f"datasets.{name}.held_out is 0: there is nothing to measure trials against")
        if (self.folder / TRIALS).exists():
            return
        tried = {self.trial_name(number): settings for number, settings in enumerate(self._extremes)}
        jobs = plan.jobs(load(PARAMS, {self.name: self.trials(tried)}))
        fitted = {job.references.name for job in jobs if isinstance(job, ProbeRecipe)}
        if len(fitted) > 1:
            raise ParamsError(
                f"trials would be measured against references fitted as {', '.join(sorted(fitted))}, for their bases "
                f"have other sizes: give one base, or fit.size_px"
            )

    @cached_property
    def _extremes(self) -> list[dict[str, Any]]:
        """Settings of a trial for every value at an end of a key, or in its list."""
        return [self._possible(key, value) for key, axis in self.space.axes.items() for value in axis.ends]

    def _possible(self, key: Key, value: Any) -> dict[str, Any]:
        """Settings of a trial that may have a value: with the version's own, or the first or last of the other keys."""
        varied = self.space.varied
        others: list[dict[Key, Any]] = [{}, *({k: axis.ends[end] for k, axis in varied.items()} for end in (0, -1))]
        problems = []
        for other in others:
            settings = {**self.space.fixed, **other, key: value}
            try:
                self.resolved(settings)
            except ParamsError as error:
                problems.append(error)
            else:
                return nested(settings)
        raise problems[0]

    def _prune_at(self) -> tuple[int, ...]:
        """The checkpoints at which trials are given up; those that are asked for must be some trial's."""
        trials = self.trials({str(number): settings for number, settings in enumerate(self._extremes)})
        versions = [trial_of(self.raw, trials, name, self.folder / STUDY) for name in trials.trials]
        steps = sorted({step for version in versions for step in version.train.checkpoint_steps[:-1]})
        if self.study.prune_at is not None:
            for step in self.study.prune_at:
                if step not in steps:
                    raise ParamsError(
                        f"prune_at: {step} is no checkpoint before a training's end; those are "
                        f"{', '.join(map(str, steps)) or 'none'}"
                    )
            return tuple(sorted(set(self.study.prune_at)))
        shortest = min((version.train for version in versions), key=lambda train: train.steps)
        on_the_way = shortest.checkpoint_steps[:-1]
        thirds = [shortest.steps * part / 3 for part in (1, 2) if on_the_way]
        return tuple(sorted({min(on_the_way, key=lambda step: abs(step - third)) for third in thirds}))

    def begin(self) -> None:
        """Write down what is searched, or see that it is what was.

        Raises:
            ParamsError: If the study began with something else; names both.
        """
        self.journal = Journal(self.folder, self.study, self.space, self.maximise, self.itself.params)
        wanted, was = named(self.definition), named(self.journal.definition)
        if not was:
            self.journal.begin(self.definition)
        elif names := [name for name in differing(was, wanted) if name in was]:  # an update may bring further options
            raise ParamsError(
                f"search {self.name} began otherwise: {told(names, was, wanted)}; its trials cannot be compared with "
                f"others: set that back, or give another search another name"
            )
        if not (self.folder / STUDY).exists():
            settings = {k: axis.text if isinstance(axis, Range) else axis.values for k, axis in self.space.axes.items()}
            text = f"# What is searched: `sdlora search {self.name}`. docs/scale.md explains it."
            write_yaml(self.folder / STUDY, text, {**self.study.model_dump(mode="json"), "settings": settings})
        self.known = self._known(is_new=not was)
        if self.journal.told:
            self._compare_with_what_was()
        elif self.itself.why_not and not self.known.trials:
            begins = f"no trial is {self.study.like} itself" if self.study.grid else "the first trial is random"
            print(f"note: {self.itself.why_not}: {begins}", file=sys.stderr)

    def _known(self, is_new: bool) -> Trials:
        """The trials so far: those that the journal has, and those that were asked and have not come to their end."""
        told = {self.trial_name(one.number): one for one in self.journal.told}
        settings = {name: self.settings(one.params) for name, one in told.items() if not one.is_refused}
        path = self.folder / TRIALS
        if is_new or not path.exists():
            return self.trials(settings)
        asked = section_of(path, Trials)
        return self.trials({**settings, **asked.trials}, asked.batch)

    def _compare_with_what_was(self) -> None:
        """Trials that were measured on other data or another base cannot be compared with those to come.

        Raises:
            DataError: If it is so; names what differs. An update of sdlora or of a package is a note alone.
        """
        jobs = {job.wildcards["version"]: job for job in plan.jobs(load(PARAMS)) if _is_last_probe(job)}
        for outcome in self.journal.told:
            job = jobs.get(self.trial_name(outcome.number))
            made = None if job is None else freshness.read_made(job.made)
            if job is None or made is None or made.asked is None:  # not trained to its end, or its results are gone
                continue
            if not all(path.exists() for path in job.inputs):  # they are made with the next trial, and compared then
                continue
            was, is_now = (named({**asked, "made from": inputs}) for asked, inputs in (
                (made.asked, made.inputs), (job.identity(), freshness.inputs_of(job))
            ))  # fmt: skip
            names = differing(was, is_now)
            said = f"since trial {outcome.number} of {self.name} was measured, {told(names, was, is_now)}"
            if not is_update(names):
                raise DataError(f"{said}; trials from here on could not be compared with it: begin another search")
            if names:
                if not self._noted:
                    print(f"note: {said}", file=sys.stderr)
                self._noted = True
                return

    def make(self, asked: Asked) -> None:
        """Batch after batch, then all of the best trial."""
        count = self._count(asked.trials)
        if asked.leave_out and len(self.journal.told) >= count:
            raise ParamsError(f"--leave-out: all {count} trials of {self.name} have come to their end: leave it out")
        leave_out = set(asked.leave_out)
        while (done := len(self.journal.told)) < count:
            first, last = self.known.batch
            if not first <= done <= last:
                first, last = done, min(done + asked.at_once, count) - 1
            if not leave_out <= {*range(done, last + 1)}:
                raise ParamsError(f"--leave-out: at work are {', '.join(map(str, range(done, last + 1)))}")
            batch = Batch(self, first, last, asked.snakemake)
            outcomes = batch.outcomes(done, leave_out)
            self._compare_with_what_was()  # once more: what pictures have become shows in what Snakemake makes of them
            for outcome in outcomes:
                self.journal.tell(outcome)
                print(self._line(outcome, count), flush=True)
            leave_out = set()  # those of the next batch are others
            best = self.journal.best()
            if best is not None and best.run is not None:
                store.entry("train", best.run)  # the newest again: others come after it, and keep_runs are kept
            self.write_page()
        best = self.journal.best()
        if best is not None:
            self._make_all_of(self.trial_name(best.number), asked)
        self.write_page()
        print(page.verdict(self))
        if best is not None:
            print(page.lines(self, best))

    def _count(self, asked: int | None) -> int:
        """How many trials there will be: no more than can differ."""
        most = self.space.combinations
        count = asked or (most if most is not None and self.study.grid else TRIALS_BY_DEFAULT)
        left_out = sum(one.why == LEFT_OUT for one in self.journal.told)  # nothing is known of these settings
        if most is None or count <= (most := most + left_out):
            return count
        print(f"note: there are {most} combinations: that many trials and no more", file=sys.stderr)
        return most

    def _make_all_of(self, name: str, asked: Asked) -> None:
        """Publish the best trial, test it, and write its own page."""
        check_params(self)
        try:
            snakemake([f"results/{name}/metrics.csv", f"results/{name}/report/index.html"], asked.snakemake)
        except DataError as error:
            raise DataError(
                f"all trials have come to their end, but of the best one, {name}, not all was made: {error}, and says "
                f"above why. `{asked.going_on}` makes the rest"
            ) from None

    def write_page(self) -> None:
        """The table and the page, as far as the study is."""
        page.write(self)

    def _line(self, outcome: Outcome, count: int) -> str:
        best = self.journal.best()
        came = outcome.why if outcome.value is None else f"{self.study.by} {outcome.value:.5g} at step {outcome.chosen}"
        so_far = "" if best is None else f" (best so far: trial {best.number}, {best.value:.5g})"
        name = self.itself.named(outcome.params)
        return f"trial {outcome.number} of {count}{name and f' ({name})'}: {outcome.tried}: {came}{so_far}"


def _is_last_probe(job: Recipe) -> bool:
    """Whether a job measures a trial at its end."""
    return isinstance(job, ProbeRecipe) and job.is_last


def _study(asked: Asked) -> Study:
    """What is searched, from the file, the command line, or both."""
    path = FOLDER / asked.name / STUDY
    given = {key: value for key, value in asked.study.items() if value is not None}
    if not path.exists():
        for option, field in (("--like VERSION", "like"), ("--set KEY=VALUES", "settings")):
            if field not in given:
                raise ParamsError(f"there is no {path} yet: say {option}")
        return Study(**given)
    kept = section_of(path, Study)
    wanted = kept.model_copy(update=given)
    both = [
        {**study.model_dump(mode="json"), "settings": space_of(study.settings, study.grid).texts}
        for study in (kept, wanted)
    ]
    was, is_now = map(named, both)
    if names := differing(was, is_now):
        raise ParamsError(
            f"{path} says otherwise: {told(names, was, is_now)}; a study stays what it was: leave the options out, or "
            f"give another search another name"
        )
    return kept


def _metric(study: Study, version: Version) -> str:
    """What trials are measured by."""
    own = version.evaluate.choose_by
    if study.by is None and len(own) > 1:
        raise ParamsError(f"evaluate.choose_by of {study.like} names {', '.join(own)}: say --by with one of them")
    by = study.by or own[0]
    if by not in choices.METRICS:
        raise ParamsError(f"--by: there is no metric {by!r}{suggest(by, choices.METRICS)}")
    return by
