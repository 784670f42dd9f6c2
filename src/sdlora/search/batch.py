"""Trials that are made together: what each tries, the calls of Snakemake that make them, and what came of each."""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora import records
from sdlora.config.load import load, trial_of
from sdlora.config.search import TRIALS
from sdlora.errors import DataError, ParamsError
from sdlora.flow import command
from sdlora.search.journal import LEFT_OUT, NOT_ALLOWED, Outcome
from sdlora.search.space import Key, as_yaml, value_at
from sdlora.search.unchanged import check_params
from sdlora.stages.probe.recipe import PROBE, ProbeRecipe

if TYPE_CHECKING:
    from sdlora.search.run import Search

PARAMS, LOGS = Path("params.yaml"), Path("logs")


class Batch:
    """Trials that are made together.

    Args:
        search: Theirs.
        first: The first of them, also where it is finished.
        last: The last.
        further: Options for Snakemake.
    """

    def __init__(self, search: "Search", first: int, last: int, further: Sequence[str]) -> None:
        self._search, self._first, self._further = search, first, further
        self._params, self._refused = self._asked(last)
        self._trials = {
            number: trial_of(search.raw, search.known, search.trial_name(number), search.folder / TRIALS)
            for number in self._params
            if number not in self._refused
        }

    def _asked(self, last: int) -> tuple[dict[int, dict[Key, Any]], dict[int, str]]:
        """What each trial tries, and why some may not; those that may are versions from here on."""
        search = self._search
        check_params(search)  # from here on a mistake is a trial's
        params: dict[int, dict[Key, Any]] = {}
        refused: dict[int, str] = {}
        settings = dict(search.known.trials)
        for number in range(self._first, last + 1):
            name = search.trial_name(number)
            if name in settings:  # it was asked before the command was stopped
                params[number] = {key: value_at(settings[name], key) for key in search.space.varied}
                continue
            params[number] = search.journal.propose(number, self._first, [*params.values()])
            wanted = {**settings, name: search.settings(params[number])}
            try:
                load(PARAMS, {search.name: search.trials(wanted)})
            except ParamsError as error:
                refused[number] = f"{NOT_ALLOWED}{str(error).removeprefix(f'{search.folder / TRIALS}: {name}.')}"
            else:
                settings = wanted
        search.known = search.trials(settings, (self._first, last))
        text = f"# The trials of the search {search.name}, which are versions like those of params.yaml."
        write_yaml(search.folder / TRIALS, text, search.known.model_dump(mode="json"))
        return params, refused

    def outcomes(self, done: int, left_out: set[int]) -> list[Outcome]:
        """What comes of the trials from number `done` on, in order."""
        found = {n: Outcome(n, self._params[n], None, why=why) for n, why in self._refused.items()}
        found |= {n: Outcome(n, self._params[n], None, why=LEFT_OUT) for n in left_out}
        found = {n: outcome for n, outcome in found.items() if n >= done}
        alive = [n for n in self._trials if n >= done and n not in found]
        on_the_way: dict[int, dict[int, float]] = {n: {} for n in alive}
        if self._search.journal.can_give_up(self._first):
            for step in sorted({step for n in alive for step in self._trials[n].probes[:-1]}):
                those = [n for n in alive if n not in found and step in self._trials[n].probes[:-1]]
                for n, probe in self._probed(dict.fromkeys(those, step)).items():
                    if probe["diverged"] is None:
                        on_the_way[n][step] = probe["values"][str(step)]
                    if given_up := self._given_up(n, step, probe, on_the_way[n]):
                        found[n] = given_up
        alive = [n for n in alive if n not in found]
        for n, probe in self._probed({n: self._trials[n].probes[-1] for n in alive}).items():
            found[n] = self._finished(n, probe)
        return [found[n] for n in sorted(found)]

    def _given_up(
        self, number: int, step: int, probe: Mapping[str, Any], on_the_way: Mapping[int, float]
    ) -> Outcome | None:
        params, run = self._params[number], probe["run"]
        if probe["diverged"] is not None:
            return Outcome(number, params, None, on_the_way=on_the_way, why=f"diverged: {probe['diverged']}", run=run)
        if self._search.journal.is_hopeless(self._first, params, on_the_way):
            base = probe["values"]["0"]
            return Outcome(number, params, None, None, on_the_way, base, f"given up at step {step}", run)
        return None

    def _finished(self, number: int, probe: Mapping[str, Any]) -> Outcome:
        params, run, values = self._params[number], probe["run"], probe["values"]
        if probe["diverged"] is not None:
            return Outcome(number, params, None, why=f"diverged: {probe['diverged']}", run=run)
        steps = self._trials[number].probes[:-1]
        passed = {step: values[str(step)] for step in steps}
        return Outcome(
            number, params, values[str(probe["chosen"])], probe["chosen"], passed, values["0"], run=run
        )  # fmt: skip

    def _probed(self, steps: Mapping[int, int]) -> dict[int, Any]:
        """What some trials are measured at, after Snakemake has made it."""
        names = {number: self._search.trial_name(number) for number in steps}
        pattern = f"{ProbeRecipe.folder_pattern}/{PROBE}"
        paths = {n: Path(pattern.format(version=names[n], step=step)) for n, step in steps.items()}
        if paths:
            check_params(self._search)
            logs = {n: LOGS / names[n] / f"probe-{step}.log" for n, step in steps.items()}
            before = {n: _written(log) for n, log in logs.items()}
            try:
                snakemake([*map(str, paths.values())], self._further)
            except DataError as error:
                begun = {n: log for n, log in logs.items() if not paths[n].exists() and _written(log) != before[n]}
                raise DataError(f"{error}; {_blamed(begun)}. The same command goes on") from None
        return {n: records.read_json(path) for n, path in paths.items()}


def _written(log: Path) -> int:
    """When a log was written last, ns; 0 if there is none."""
    return log.stat().st_mtime_ns if log.exists() else 0


def _blamed(logs: Mapping[int, Path]) -> str:
    """Which trials failed: those whose jobs have now written a log; where none was begun, none is to blame."""
    if not logs:
        return "no trial was begun: what it said above tells why"
    first = min(logs)
    return f"trial {', '.join(map(str, logs))}: see {logs[first]}, or leave it out with --leave-out {first}"


def check_further(words: Sequence[str]) -> None:
    """Refuse options for Snakemake that it does not have, or with which it would make nothing.

    A study would be written otherwise, and its first trial blamed.

    Raises:
        ParamsError, DataError: In Snakemake's own words, or with what is not for a search.
    """
    command.check_options(words)
    asked = command.parsed(words)
    if asked.targets:
        raise ParamsError(
            f"behind --: {asked.targets[0]}: a search says itself what is made; only options belong there"
        )
    if asked.dryrun:
        raise ParamsError("behind --: -n: what comes next follows from what was measured, so a search has no dry run")


def snakemake(targets: Sequence[str], further: Sequence[str]) -> None:
    """Make files, in a run of the pipeline's own.

    Raises:
        DataError: If it did not make all of them.
    """
    program = shutil.which("snakemake") or str(Path(sys.executable).with_name("snakemake"))
    sys.stdout.flush()
    with subprocess.Popen([program, "--keep-going", *further, "--", *targets]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # it was told, too, and ends its jobs
            process.wait()
            raise
    if code:
        raise DataError(f"Snakemake ended with {code}")
    if missing := [name for name in targets if not Path(name).exists()]:
        raise DataError(f"Snakemake has not made {missing[0]}")


def write_yaml(path: Path, comment: str, values: Mapping[str, Any]) -> None:
    """Write settings as a person writes them, below a comment."""
    records.write_text(path, f"{comment}\n{as_yaml(values)}")
