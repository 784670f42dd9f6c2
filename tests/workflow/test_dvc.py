"""What DVC is told: all that a version reads, nothing that a shell may misread, and curves that are one metric each."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, SMALL, Project, make_project
from ruamel.yaml import YAML
from small_set import edited

from sdlora import records
from sdlora.config.params import Params
from sdlora.flow import plan

# One change of each key of params.yaml, as a user would make it.
CHANGES: dict[str, tuple[tuple[str, str], ...]] = {
    "base": (("base: tiny\n", "base: other\n"),),
    "dataset": (("dataset: small\n", "dataset: other\n"),),
    "run": (("run: [a, b]", "run: [b, a]"),),
    "scraping": (("threads: 1", "threads: 1\nscraping: true"),),
    "threads": (("threads: 1", "threads: 2"),),
    "keep_runs": (("keep_runs: 20", "keep_runs: 3"),),
    "bases": (("  tiny: {", "  tiny: {learning_rate_scale: 2.0, "),),
    "datasets": (("trigger: captain", "trigger: skipper"),),
    "defaults": (("inference_steps: 3", "inference_steps: 4"),),
    "presets": (("train: {noise: [offset]}", "train: {noise: [pyramid]}"),),
    "versions": (("train: {rank: 2}", "train: {rank: 3}"),),
}
TEXT = SMALL.replace("  a:\n", "  a:\n    preset: mine\n", 1).replace(
    "datasets:\n", "  other: {model: models/tiny-sd, family: sd, size_px: 96, captioner: models/tiny-blip}\ndatasets:\n"
    "  other:\n    sources: [{kind: folder, path: data/other}]\n    trigger: x\n    held_out: references\n", 1
).replace("presets: {}\n", "presets:\n  mine: {train: {noise: [offset]}}\n", 1)  # fmt: skip


def recipes(folder: Path, *changes: tuple[str, str]) -> list[tuple[str, object]]:
    """All that version a is made from."""
    params = edited(folder, *changes, text=TEXT)
    index = Path("results/a/made/report.json")
    jobs = {job.made: job for job in plan.jobs(params)}
    found: list[tuple[str, object]] = []
    waiting = [index]
    while waiting:
        job = jobs[waiting.pop()]
        found.append((str(job.made), job.identity()))
        waiting += job.inputs
    return sorted(found, key=lambda pair: pair[0])


def test_dvc_is_told_all_that_a_version_reads_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]["lora"]["do"]
    told = {name.replace("versions.${item}", "versions") for name in stage["params"]}
    assert CHANGES.keys() == {*Params.model_fields, "defaults"}, "a new key needs a change here"
    before = recipes(tmp_path)
    assert {key for key, changes in CHANGES.items() if recipes(tmp_path, *changes) != before} == told


def test_a_vote_concerns_the_page_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]["lora"]["do"]
    assert "votes.jsonl" in stage["deps"] and (ROOT / "votes.jsonl").read_bytes() == b"", "DVC wants a file"
    without = recipes(tmp_path)
    Path("votes.jsonl").touch()
    assert recipes(tmp_path) == without
    Path("votes.jsonl").write_text("a vote\n", encoding="utf-8")
    changed = [before for before, after in zip(without, recipes(tmp_path), strict=True) if before != after]
    assert [name for name, _ in changed] == ["results/a/made/report.json"]


@pytest.fixture
def project(served: Path, tmp_path: Path) -> Project:
    """A project under git and DVC in which nothing has run."""
    project = make_project(tmp_path / "project", python=served)
    project.command("git", "init", "-q", "-b", "main")
    project.command("dvc", "init", "-q")
    return project


def test_a_version_is_never_a_shell_command(project: Project) -> None:
    name = "a; touch hacked #"
    project.edit("params.yaml", "run: [a, b]", f'run: ["{name}"]')
    done = project.command("dvc", "repro", "--force", "--single-item", f"lora@{name}", check=False)
    assert "a name has letters" in done.stdout + done.stderr
    assert not (project.folder / "hacked").exists()


def test_each_metric_is_a_line_of_its_own(project: Project) -> None:
    for metric, value in (("psnr_db", "9.5"), ("ssim", "0.25")):
        records.write_csv(
            project.folder / f"results/a/curves/{metric}.csv",
            ["step", "mean", "ci_low", "ci_high"],
            [["0", value, "0", "1"]],
        )
    text = project.command("dvc", "plots", "show", "--json", "results/a/curves").stdout
    lines = {name: plots[0]["content"]["data"]["values"] for name, plots in json.loads(text)["data"].items() if plots}
    first = {Path(name).name: rows[0]["mean"] for name, rows in lines.items()}
    assert first == {"psnr_db.csv": "9.5", "ssim.csv": "0.25"}


def test_own_pictures_travel_with_dvc(project: Project, tmp_path: Path) -> None:
    """As docs/own-dataset.md says it."""
    shutil.move(project.folder / "data/embedded/small", project.folder / "data/mine")
    project.edit("params.yaml", "data/embedded/small", "data/mine")
    project.command("dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "remote"))
    project.command("dvc", "add", "-q", "data/mine")
    project.command("git", "add", "-A")
    project.command("git", "commit", "-q", "-m", "my pictures")
    project.command("dvc", "push", "-q")
    project.command("git", "clone", "-q", str(project.folder), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", project.python)
    told = clone.snakemake("-n", "data/sets/small/manifest.jsonl", check=False)
    assert "there is no folder 'data/mine'; DVC knows it: say `dvc pull`" in told
    clone.command("dvc", "pull", "-q", "data/mine")
    clone.snakemake("data/sets/small/manifest.jsonl")
    assert len(records.read_jsonl(clone.folder / "data/sets/small/manifest.jsonl")) == 6
