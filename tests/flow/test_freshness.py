"""Freshness by content and truthful mtimes."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from helpers import SMALL
from power_cut import CUTS
from pydantic import Field
from small_set import edited

from sdlora import records
from sdlora.config.load import load
from sdlora.errors import DataError
from sdlora.flow import command, folders, freshness, hashing, plan, store
from sdlora.flow.hashing import FileHashes
from sdlora.flow.recipe import Recipe


class First(Recipe):
    """A stage that writes a file and a folder."""

    stage: ClassVar[str] = "fit"
    folder_pattern: ClassVar[str] = "a"
    writes: ClassVar[tuple[str, ...]] = ("out", "many/")
    record: ClassVar[str] = "made.json"
    number: int = 1


class Second(First):
    """The stage after it."""

    stage: ClassVar[str] = "flip"
    folder_pattern: ClassVar[str] = "b"
    inputs: tuple[Path, ...] = (Path("a/made.json"),)


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Two jobs that have run: a -> b."""
    monkeypatch.chdir(tmp_path)
    a, b = First(wildcards={}), Second(wildcards={})
    freshness.settle([a, b])
    for job in (a, b):
        files = [job.outputs[0], job.outputs[1] / "1", job.outputs[1] / "2"]
        for file in files:
            records.write_text(file, job.stage)
        (job.outputs[1] / freshness.FOLDER_MARK).touch()  # as Snakemake does when the job has ended
        freshness.write_made(job, files)
    return [a, b]


def test_a_folder_in_which_a_job_had_nothing_to_write_is_fresh(chain: list[Recipe]) -> None:
    first = chain[0]
    for file in ("1", "2"):
        (first.outputs[1] / file).unlink()
    freshness.write_made(first, [first.outputs[0]])
    assert freshness.settle([first]) == [first]
    (first.outputs[1] / freshness.FOLDER_MARK).unlink()
    first.outputs[1].rmdir()
    assert freshness.settle([first]) == []


def test_what_changed_while_a_job_was_at_work_is_not_recorded_as_what_it_was_made_from(
    chain: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that outlives its Snakemake, while another run or a checkout brings other pictures."""
    a, b = chain
    before = b.made.read_bytes()

    def work(recipe: Recipe, text: str) -> list[Path]:
        records.write_text(a.outputs[0], text)
        freshness.write_made(a, [a.outputs[0]])
        return [b.outputs[0]]

    monkeypatch.setattr("sys.argv", ["flip", "--recipe", str(b.path), "--text", "other"])
    with pytest.raises(SystemExit, match=r"while flip was at work, a/made\.json changed"):
        command.run(Second, work, text=str)
    assert b.made.read_bytes() == before
    command.run(Second, work, text=str)  # nothing is another one now
    made = freshness.read_made(b.made)
    assert made is not None and made.inputs == freshness.inputs_of(b)


class Grown(First):
    """The first stage with settings that came later."""

    later: ClassVar[dict[str, object]] = {"extra": None, "section.option": 1}
    extra: int | None = None
    section: dict[str, int] = Field({})


def test_a_setting_that_came_later_makes_nothing_stale_at_its_default() -> None:
    before = {**First(wildcards={}).identity(), "section": {}}
    assert Grown(wildcards={}).identity() == Grown(wildcards={}, section={"option": 1}).identity() == before
    assert Grown(wildcards={}, extra=3).identity() == {**before, "extra": 3}
    assert Grown(wildcards={}, section={"option": 2}).identity() == {**before, "section": {"option": 2}}


def test_what_is_there_and_would_be_made_again_is_told_without_a_change(chain: list[Recipe]) -> None:
    a, b = chain
    assert freshness.stale([b.made], chain) == []
    before = {path: path.stat().st_mtime_ns for path in (a.made, b.made, *a.outputs, *b.outputs)}
    other: list[Recipe] = [First(wildcards={}, number=2), b]
    assert freshness.stale([b.made], other) == [b.made], "the job before it would run again"
    assert freshness.stale([a.made], other) == [a.made] and freshness.stale([a.made], chain) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    b.made.unlink()
    assert freshness.stale([b.made], other) == [], "what is not there is nobody's old result"


def timed(job: Recipe) -> list[Path]:
    """The outputs whose mtimes Snakemake reads."""
    return [job.made, job.outputs[0], job.outputs[1] / freshness.FOLDER_MARK]


def newer(job: Recipe) -> bool:
    """Whether Snakemake would see an input as new as an output."""
    inputs = max(path.stat().st_mtime for path in (job.path, *job.inputs))
    return inputs >= min(path.stat().st_mtime for path in timed(job))


def test_fresh_jobs_stay_fresh_in_any_checkout_order(chain: list[Recipe]) -> None:
    for path, age in ((chain[0].made, 0), (chain[1].made, 900), (chain[1].outputs[0], 500)):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    assert freshness.settle(chain) == chain
    assert not any(map(newer, chain))


@pytest.mark.parametrize(
    ("damage", "stale"),
    [
        ("recipe of a", {"a", "b"}),
        ("recipe of b", {"b"}),
        ("output of b", {"b"}),
        ("output of a", {"a", "b"}),
        ("record of a", {"a", "b"}),
        ("garbled record", {"b"}),
        ("file in a folder of b", {"b"}),
        ("lost file in a folder of a", {"a", "b"}),
    ],
)
def test_what_does_not_fit_is_run_again(chain: list[Recipe], damage: str, stale: set[str]) -> None:
    a, b = chain
    if damage == "recipe of a":
        a = First(wildcards={}, number=2)
    elif damage == "recipe of b":
        b = Second(wildcards={}, number=2)
    elif damage == "record of a":
        a.made.unlink()
    elif damage == "garbled record":
        b.made.write_text("{")
    elif damage == "file in a folder of b":
        (b.outputs[1] / "1").write_text("tampered")
    elif damage == "lost file in a folder of a":
        (a.outputs[1] / "2").unlink()
    else:
        (a if damage.endswith("a") else b).outputs[0].write_text("tampered")
    fresh = freshness.settle([a, b])
    assert {job.folder.name for job in (a, b) if job not in fresh} == stale
    for job in (a, b):
        if job.folder.name in stale and job.made.exists():
            assert not a.made.exists() or newer(job) or newer(a)


def kept_aside(name: str) -> list[str]:
    """What of a file was kept before its job makes it again."""
    return sorted(path.read_text("utf-8") for path in freshness.CHANGED.glob(f"*/{name}"))


def test_what_was_changed_by_hand_is_named_and_kept(chain: list[Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    _, b = chain
    freshness.settle(chain)
    assert capsys.readouterr().err == "" and not freshness.CHANGED.exists()
    for text in ("mine", "mine, better"):
        (b.outputs[1] / "1").write_text(text)
        (b.outputs[0]).write_text("mine, too")
        (b.outputs[1] / "2").unlink(missing_ok=True)  # what is gone is no change that could be kept
        for _ in range(2):  # a dry run, then the run
            freshness.settle(chain)
            (said,) = capsys.readouterr().err.splitlines()
            assert said.startswith("note: b/many/1 (and 1 more) has changed since flip made it: it will be made again,")
            assert Path(said.split("kept as ")[1]).read_text() == text
        records.write_text(b.outputs[1] / "1", "made again")  # as every stage writes
    assert kept_aside("b/many/1") == ["mine", "mine, better"] and kept_aside("b/out") == ["mine, too"]


def test_a_change_is_kept_too_where_the_job_has_another_reason_to_run(chain: list[Recipe]) -> None:
    a, b = chain
    b.outputs[0].write_text("mine")
    freshness.settle([a, Second(wildcards={}, number=2)])
    assert kept_aside("b/out") == ["mine"] and kept_aside("a/out") == []


def test_going_back_is_fresh_again(chain: list[Recipe]) -> None:
    a, b = chain
    freshness.settle([a, Second(wildcards={}, number=2)])
    assert freshness.settle([a, b]) == [a, b]
    assert not any(map(newer, (a, b)))


def test_a_recipe_that_changed_during_the_job_makes_it_stale(chain: list[Recipe]) -> None:
    _, b = chain
    changed = Second(wildcards={}, number=2)
    freshness.settle([chain[0], changed])
    freshness.write_made(b, b.outputs[:1])
    assert changed not in freshness.settle([chain[0], changed])


def times(jobs: list[Recipe]) -> list[int]:
    return [path.stat().st_mtime_ns for job in jobs for path in (job.path, *timed(job))]


def test_times_in_the_future_are_set_back(chain: list[Recipe]) -> None:
    """A clock that was set back: whatever a job writes now must be newer than what it reads."""
    for job in chain:
        for path in (job.path, *timed(job)):
            os.utime(path, (time.time() + 9000, time.time() + 9000))
    chain[1].outputs[0].write_text("tampered")
    assert freshness.settle(chain) == chain[:1]
    assert max(times(chain)) <= time.time_ns() and not newer(chain[0]) and newer(chain[1])


@pytest.mark.parametrize("second", [1, 2])
def test_a_file_system_that_tells_seconds_apart(
    chain: list[Recipe], second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, keep = second * 10**9, os.utime

    def coarse(path: Path, times: object = None, *, ns: tuple[int, int] | None = None) -> None:
        time_ns = ns[1] if ns else time.time_ns()
        keep(path, ns=(time_ns // unit * unit,) * 2)

    monkeypatch.setattr(os, "utime", coarse)
    for job in chain:
        for path in (job.path, *timed(job)):
            coarse(path, ns=(time.time_ns(),) * 2)
    assert freshness.settle(chain) == chain and not any(map(newer, chain))
    a, b = chain
    b = Second(wildcards={}, number=2)
    assert freshness.settle([a, b]) == [a]
    assert not newer(a) and newer(b), "Snakemake must see that b is to be made again"
    assert max(times([a, b])) <= time.time_ns()


HOSTILE = {
    "a device": {"/dev/zero": "0"},
    "above the project": {"../x": "0"},
    "no texts": {"b/out": 1},
    "no table": ["b/out"],
    "a null byte": {"b/\0": "0"},
}


@pytest.mark.parametrize("what", [*HOSTILE, "not UTF-8", "too deep", "no object", "a FIFO", "a missing key"])
def test_a_hostile_record_is_no_record(chain: list[Recipe], what: str, capfd: pytest.CaptureFixture[str]) -> None:
    record = chain[1].made
    whole = records.read_json(record)
    if what in HOSTILE:
        records.write_json(record, {**whole, "outputs": HOSTILE[what]})
    elif what == "a FIFO":
        record.unlink()
        os.mkfifo(record)
    else:
        content = {"not UTF-8": b"{\xff}", "too deep": b"[" * 100_000, "no object": b"[]", "a missing key": b"{}"}
        record.write_bytes(content[what])
    assert freshness.settle(chain) == chain[:1]
    assert f"{record} " in capfd.readouterr().err, "and it is told"


def test_a_recorded_file_that_became_a_fifo_is_not_read(chain: list[Recipe]) -> None:
    chain[1].outputs[0].unlink()
    os.mkfifo(chain[1].outputs[0])
    assert freshness.settle(chain) == chain[:1]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a/out": 3}',
                                     b'{"a/out": [1, "x", []]}', b'{"a/out": [true, 1, "x"]}'])  # fmt: skip
def test_damaged_hashes_are_found_anew(chain: list[Recipe], content: bytes) -> None:
    Path(".sdlora/hashes.json").write_bytes(content)
    assert freshness.settle(chain) == chain
    assert isinstance(records.read_json(Path(".sdlora/hashes.json")), dict)


def test_a_folder_of_the_pipeline_that_cannot_be_written_is_told(chain: list[Recipe]) -> None:
    shutil.rmtree(".sdlora")
    Path(".sdlora").write_text("a file")
    with pytest.raises(DataError, match=r"\.sdlora.*the pipeline must be able to write it"):
        freshness.settle(chain)


def test_names_that_are_not_utf8_and_files_that_cannot_be_read_have_an_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"1")
    (tmp_path / "b.png").write_bytes(b"2")
    hashes = FileHashes(tmp_path / "hashes.json")
    before = folders.identity(tmp_path, hashes, (".png",))
    hashes.save()
    assert "b.png" in "".join(records.read_json(tmp_path / "hashes.json"))
    real = hashing.sha256_of

    def refused(path: Path) -> str:
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(hashing, "sha256_of", refused)
    assert folders.identity(tmp_path, FileHashes(tmp_path / "none.json"), (".png",)) != before


def test_what_lies_behind_a_link_counts(tmp_path: Path) -> None:
    """Who reads masks, bases and LoRAs follows links."""
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    (tmp_path / "near/hat").symlink_to(tmp_path / "far")
    found = set()
    for content in (b"1", b"22"):
        (tmp_path / "far/a.png").write_bytes(content)
        found.add(folders.identity(tmp_path / "near", FileHashes(tmp_path / "none.json"), (".png",)))
    assert len(found) == 2


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["a/out", "a/many/1", "a/made.json"])
def test_what_a_power_cut_left_is_made_again(chain: list[Recipe], name: str, cut: str) -> None:
    CUTS[cut](Path(name))
    assert freshness.settle(chain) == []


def test_what_was_hashed_is_on_the_disk_before_it_is_remembered(
    chain: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of zeros that kept its time and size would otherwise be taken for the one that was hashed."""
    memory, out, synced = Path(".sdlora/hashes.json"), Path("a/out"), []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        if os.path.sameopenfile(descriptor, opened):
            synced.append(memory.exists() and "a/out" in memory.read_text("utf-8"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with out.open("rb") as file:
        opened = file.fileno()
        assert freshness.settle(chain) == chain
        assert synced == [False] and "a/out" in memory.read_text("utf-8")
        assert freshness.settle(chain) == chain
    assert synced == [False], "nothing new was hashed"


@pytest.mark.parametrize("cut", CUTS)
def test_the_store_gives_nothing_back_that_a_power_cut_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [Path("one"), Path("two")]
    for path in files:
        path.write_text(f"content of {path}", "utf-8")
    digests = store.keep("kind", files)
    CUTS[cut](store.STORE / "kind" / digests[1])
    for path in files:
        path.unlink()
    assert not store.bring_back("kind", digests, files)
    assert not any(path.exists() for path in files), "nothing was changed"


@pytest.mark.slow
def test_the_plan_of_100_versions_with_30_checkpoints_takes_less_than_6_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of CPU time, with all files there and nothing to do; starting Snakemake comes on top."""
    monkeypatch.chdir(tmp_path)
    names = [f"v{number}" for number in range(100)]
    text = SMALL.partition("versions:")[0].replace("steps: 4, checkpoint_every: 2", "steps: 30, checkpoint_every: 1")
    rows = [f"  {name}: {{train: {{rank: {1 + number % 50}}}}}" for number, name in enumerate(names)]
    text = "\n".join([text.replace("run: [a, b]", f"run: [{', '.join(names)}]") + "versions:", *rows])
    _all_made(plan.jobs(edited(tmp_path, text=text)))
    for state in ("first", "again"):
        began = time.process_time()
        jobs = plan.jobs(load(tmp_path / "params.yaml"))
        fresh = freshness.settle(jobs)
        took = time.process_time() - began
        print(f"{len(jobs)} jobs, {state}: {took:.1f} s of CPU time")
        assert len(jobs) > 600 and len(fresh) == len(jobs) and took < 6


def _all_made(jobs: Sequence[Recipe]) -> None:
    """Small files where each job would write its own, and its record."""
    for job in jobs:
        folders = [path for path, name in zip(job.outputs, job.writes, strict=True) if name.endswith("/")]
        files = [path / f"step-{n:06d}" for path in folders for n in range(30 if job.stage == "train" else 1)]
        files += [path for path in job.outputs if path not in folders]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(job.name)
        freshness.write_made(job, files)


def test_padding_that_is_not_drawn_tells_no_two_crops_apart(tmp_path: Path) -> None:
    """They lie in one folder, and would have been refused as two sets of one name."""
    crops = "  a:\n    fit: {method: center_crop}\n  b:\n    fit: {method: center_crop, fill: blur}\n"
    text = SMALL.partition("versions:\n")[0] + f"versions:\n{crops}"
    fitted = [job for job in plan.jobs(edited(tmp_path, text=text)) if job.stage == "fit"]
    assert sorted(job.folder.name for job in fitted) == ["center_crop-64", "pad-blur-64", "pad-edge-64"]
