"""What ran when, and how long: Snakemake's own events, kept a line each, and the page that shows them.

.sdlora/runs/<when it began>-<process>.jsonl     one file a run, in which something ran
results/report/runs.html, runs.csv               made of all of them by `sdlora runs`
"""

import json
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.errors import DataError
from sdlora.flow.hashing import PRIVATE

FOLDER = PRIVATE / "runs"
KEPT = 200  # runs
COLUMNS = ("run", "rule", "job", "began", "seconds", "outcome", "threads", "gpus", "mem_mb", "machine")
DONE, FAILED, OPEN = "done", "failed", "not ended"
LEAST_OPEN = 3.0  # percent of a run's line that a bar without an end takes: the run is known to its last event alone


class Events(logging.Handler):
    """Writes when jobs begin and end; nothing where nothing runs."""

    def __init__(self, is_dry: Callable[[], bool]) -> None:
        """`is_dry`: whether this is a dry run, which is not known while the Snakefile is read."""
        super().__init__()
        self._is_dry = is_dry
        self._path = FOLDER / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}-{os.getpid()}.jsonl"

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record of Snakemake's, if it is about a job; one that cannot be written is left out.

        Snakemake cancels all jobs where its logger raises.
        """
        row = _row_of(record)
        if row is None or self._is_dry():
            return
        line = json.dumps({"time": _text(datetime.now(UTC)), **row}, ensure_ascii=False)
        with suppress(OSError):
            if not self._path.exists():
                self._path.parent.mkdir(parents=True, exist_ok=True)
                keep_newest(KEPT - 1, self._path.parent)
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(f"{line}\n")


def _row_of(record: logging.LogRecord) -> dict[str, Any] | None:
    event, known = str(getattr(record, "event", "")), vars(record)
    if event == "job_info":
        resources: Mapping[str, Any] = known["resources"]
        asked = {name: resources.get(name) for name in ("gpu", "mem_mb")}
        return {
            "event": "began", "id": known["jobid"], "rule": known["rule_name"], "threads": known["threads"],
            "job": "/".join(map(str, (known["wildcards"] or {}).values())),
            "machine": socket.gethostname() if known["local"] else None,  # which node a cluster takes is not said
            **{name: value for name, value in asked.items() if isinstance(value, int)},
        }  # fmt: skip
    if event == "job_finished":
        return {"event": DONE, "id": known["job_id"]}
    if event == "job_error":
        return {"event": FAILED, "id": known["jobid"]}
    return None


@dataclass
class Job:
    """One job of a run."""

    rule: str
    name: str
    began: datetime
    asked: dict[str, Any]
    ended: datetime | None = None
    outcome: str = OPEN

    @property
    def seconds(self) -> float | None:
        """How long it took, from when Snakemake began it, which for a cluster is when it was submitted."""
        return None if self.ended is None else (self.ended - self.began).total_seconds()


@dataclass
class Run:
    """One call of Snakemake in which something ran."""

    name: str
    jobs: list[Job] = field(default_factory=list)

    @property
    def began(self) -> datetime:
        """When its first job began."""
        return min(job.began for job in self.jobs)

    @property
    def ended(self) -> datetime:
        """When its last job ended or, where it did not, began."""
        return max(job.ended or job.began for job in self.jobs)


def read(folder: Path = FOLDER) -> list[Run]:
    """All runs that are known, newest first; a line that a killed process left half is left out."""
    found = [_read(path) for path in sorted(folder.glob("*.jsonl"), reverse=True)]
    return [run for run in found if run.jobs]


def _read(path: Path) -> Run:
    run, known = Run(path.stem), {}
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        when = datetime.fromisoformat(row["time"])
        if row["event"] == "began":
            asked = {name: row.get(name) for name in ("threads", "gpu", "mem_mb", "machine")}
            known[row["id"]] = Job(row["rule"], row["job"], when, asked)
            run.jobs.append(known[row["id"]])
        elif row["id"] in known:
            known[row["id"]].ended, known[row["id"]].outcome = when, row["event"]
    return run


def write(out: Path, folder: Path = FOLDER) -> list[Path]:
    """Write the page and the table of all runs.

    Raises:
        DataError: If nothing ran here yet.
    """
    from sdlora.stages.report.page import PAGES  # imports NumPy

    runs = read(folder)
    if not runs:
        raise DataError(f"{folder}: nothing ran here yet")
    rows = [[run.name, *_cells(job)] for run in runs for job in run.jobs]
    records.write_csv(out / "runs.csv", COLUMNS, rows)
    shown = [_shown(run) for run in runs]
    text = PAGES.get_template("runs.html").render(title="Runs", runs=shown, rules=_by_rule(runs))
    records.write_text(out / "runs.html", text)
    return [out / "runs.html", out / "runs.csv"]


def _cells(job: Job) -> list[Any]:
    seconds = "" if job.seconds is None else f"{job.seconds:.1f}"
    asked = [job.asked[name] for name in ("threads", "gpu", "mem_mb", "machine")]
    return [job.rule, job.name, _text(job.began), seconds, job.outcome, *asked]


def _shown(run: Run) -> dict[str, Any]:
    """A run as the page draws it: of each job where its bar begins and how wide it is, in percent of the run."""
    whole = max((run.ended - run.began).total_seconds(), 0.001)
    jobs = []
    for job in run.jobs:
        left = 100 * (job.began - run.began).total_seconds() / whole
        left = min(left, 100 - LEAST_OPEN) if job.seconds is None else left
        width = 100 - left if job.seconds is None else 100 * job.seconds / whole
        jobs.append(
            {"rule": job.rule, "name": job.name, "left": round(left, 2), "width": round(max(width, 0.2), 2),
             "took": duration(job.seconds), "outcome": job.outcome, "asked": _asked(job)}
        )  # fmt: skip
    outcomes = [job.outcome for job in run.jobs]
    return {
        "began": f"{run.began:%Y-%m-%d %H:%M:%S} UTC", "took": duration(whole), "count": len(run.jobs), "jobs": jobs,
        "failed": outcomes.count(FAILED), "open": outcomes.count(OPEN),
    }  # fmt: skip


def _asked(job: Job) -> str:
    said = [f"{job.asked['threads']} threads", f"{job.asked['gpu']} GPU" if job.asked["gpu"] else "",
            f"{job.asked['mem_mb']} MB" if job.asked["mem_mb"] else "",
            f"on {job.asked['machine'] or 'a node of the cluster'}"]  # fmt: skip
    return ", ".join(word for word in said if word)


def _by_rule(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What each rule took in all runs, the longest first."""
    found: dict[str, list[float]] = {}
    for job in (job for run in runs for job in run.jobs):
        if job.seconds is not None:
            found.setdefault(job.rule, []).append(job.seconds)
    whole = sum(map(sum, found.values())) or 1.0
    return [
        {"rule": rule, "jobs": str(len(took)), "sum": duration(sum(took)), "longest": duration(max(took)),
         "share": f"{100 * sum(took) / whole:.0f} %"}
        for rule, took in sorted(found.items(), key=lambda pair: -sum(pair[1]))
    ]  # fmt: skip


def duration(seconds: float | None) -> str:
    """A time as people say it."""
    if seconds is None:
        return ""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _text(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds")


def keep_newest(count: int, folder: Path = FOLDER) -> None:
    """Forget all runs but the newest."""
    for path in sorted(folder.glob("*.jsonl"), reverse=True)[count:]:
        path.unlink(missing_ok=True)
