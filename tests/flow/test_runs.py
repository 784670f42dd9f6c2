"""What ran when: real events of Snakemake, and the page of runs that went well, failed or were killed."""

import errno
import json
import logging
import os
import socket
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers import Project

from sdlora import records
from sdlora.cli import main
from sdlora.errors import DataError
from sdlora.flow import runs


def test_a_run_is_written_down_by_its_events(fresh: Project) -> None:
    fresh.snakemake("-n", "data/sets/small/made/scrape.json")
    assert "nothing ran here yet" in fresh.command("sdlora", "runs", check=False).stderr
    fresh.snakemake("data/sets/small/pad-edge-64/made/fit.json")
    fresh.snakemake("-n", "data/sets/small/pad-edge-64/made/caption.json")
    fresh.command("sdlora", "runs")
    rows = records.read_csv(fresh.folder / "results/report/runs.csv")
    assert [(row["rule"], row["job"], row["outcome"]) for row in rows] == [
        ("scrape", "small", "done"), ("fit", "small/pad-edge-64", "done"),
    ]  # fmt: skip
    assert all(0 < float(row["seconds"]) < 300 and row["threads"] == "1" and row["mem_mb"] for row in rows)
    assert len({row["run"] for row in rows}) == 1 and {row["machine"] for row in rows} == {socket.gethostname()}
    page = (fresh.folder / "results/report/runs.html").read_text("utf-8")
    assert "2 jobs in" in page and "scrape small" in page and "http" not in page


def test_a_job_of_a_cluster_is_not_said_to_have_run_on_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "gethostname", lambda: "head")
    events = runs.Events(lambda: False)
    about = {"event": "job_info", "wildcards": {"version": "v8"}, "threads": 1, "resources": {}}
    for number, (rule, local) in enumerate({"train": False, "report_all": True}.items()):
        events.emit(logging.makeLogRecord({**about, "jobid": number, "rule_name": rule, "local": local}))
    runs.write(tmp_path)
    assert [row["machine"] for row in records.read_csv(tmp_path / "runs.csv")] == ["", "head"]
    page = (tmp_path / "runs.html").read_text("utf-8")
    assert 'title="1 threads, on a node of the cluster"' in page and 'title="1 threads, on head"' in page


def written(folder: Path, name: str, *rows: dict[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"time": f"2026-01-01T00:00:{second:06.3f}+00:00", **row}) for second, row in rows_at(rows)]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")


def rows_at(rows: tuple[dict[str, object], ...]) -> list[tuple[float, dict[str, object]]]:
    return [(float(str(row["at"])), {key: value for key, value in row.items() if key != "at"}) for row in rows]


def began(at: float, number: int, rule: str) -> dict[str, object]:
    return {"at": at, "event": "began", "id": number, "rule": rule, "job": "v8", "threads": 2, "gpu": 1}


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".sdlora").mkdir()
    written(tmp_path / ".sdlora/runs", "1.jsonl", began(0, 1, "train"), {"at": 8, "event": "done", "id": 1})
    (tmp_path / "results").touch()
    with pytest.raises(SystemExit, match=r"^error: results.*: (Not a directory|File exists)$"):
        main(["runs"])


def test_what_failed_or_has_no_end_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    written(
        folder, "2026-01-01T000000-1.jsonl", began(0, 1, "train"), {"at": 8, "event": "done", "id": 1},
        began(8, 2, "sample"), {"at": 10, "event": "failed", "id": 2}, began(9, 3, "<export>"),
    )  # fmt: skip
    with (folder / "2026-01-01T000000-1.jsonl").open("a") as handle:
        handle.write('\n{"time": "2026\n' + "\0" * 60)  # killed while it wrote, and what a power cut left
    written(folder, "2026-01-02T000000-1.jsonl", {"at": 1, "event": "done", "id": 7})
    (run,) = runs.read(folder)
    assert [(job.rule, job.outcome, job.seconds) for job in run.jobs] == [
        ("train", "done", 8.0), ("sample", "failed", 2.0), ("<export>", "not ended", None),
    ]  # fmt: skip
    runs.write(tmp_path, folder)
    page = (tmp_path / "runs.html").read_text("utf-8")
    assert "3 jobs in 10.0 s as far as is known, 1 failed, 1 not ended" in page and "&lt;export&gt; v8" in page
    assert 'class="done" style="left: 0.0%; width: 80.0%"' in page
    assert 'class="failed" style="left: 80.0%; width: 20.0%"' in page
    assert 'class="open" style="left: 90.0%; width: 10.0%"' in page
    assert page.index("<td>train</td>") < page.index("<td>sample</td>")


def test_a_job_that_runs_is_seen_behind_those_that_ended(tmp_path: Path) -> None:
    """One after the other, as on one core: the last event is its own beginning."""
    folder = tmp_path / "runs"
    written(
        folder,
        "2026-01-01T000000-1.jsonl",
        began(0, 1, "fit"),
        {"at": 5, "event": "done", "id": 1},
        began(5, 2, "train"),
    )
    runs.write(tmp_path, folder)
    page = (tmp_path / "runs.html").read_text("utf-8")
    assert 'class="open" style="left: 97.0%; width: 3.0%"' in page and "2 jobs in 5.0 s as far as is known" in page


def test_a_full_disk_stops_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    events = runs.Events(lambda: False)
    done = logging.makeLogRecord({"event": "job_finished", "job_id": 1})
    with monkeypatch.context() as full:
        full.setattr(Path, "open", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        events.emit(done)
    events.emit(done)
    (path,) = runs.FOLDER.glob("*.jsonl")
    assert [row["event"] for row in records.read_jsonl(path)] == ["done"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for day in range(1, 5):
        written(tmp_path, f"2026-01-0{day}T000000-1.jsonl", began(0, 1, "train"))
    runs.keep_newest(2, tmp_path)
    assert [run.name[:10] for run in runs.read(tmp_path)] == ["2026-01-04", "2026-01-03"]
    with pytest.raises(DataError, match="nothing ran here yet"):
        runs.write(tmp_path, tmp_path / "none")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (60, "1 min 0 s"), (7260, "2 h 1 min")],
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert runs.duration(seconds) == said
