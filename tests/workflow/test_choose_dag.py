"""Ten references through the real DAG: who draws which pictures, and what another choice draws again."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, SMALL, Project, make_project

from sdlora import records

PARAMS = SMALL.replace(
    "{inference_steps: 3, max_references: 2, hires: {factor: 1.5, denoising_strength: 0.35}}",
    "{inference_steps: 2, batch_size: 5, report_seeds: [42, 43]}",
).replace("run: [a, b]", "run: [a]")


@pytest.fixture(scope="module")
def tested(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A version whose choice is tested, made once; its two checkpoints are 2 and 4. What is drawn is all the same."""
    project = make_project(tmp_path_factory.mktemp("t") / "project", PARAMS, served)
    for path in sorted((ROOT / "data/embedded/captain/references").glob("*.png"))[:10]:
        shutil.copy(path, project.folder / "data/embedded/small/references" / path.name)
    project.snakemake("results/a/metrics.csv", "results/a/report/index.html")
    return project


def steps(project: Project, folder: str) -> dict[int, int]:
    """Step -> how many pictures."""
    found: dict[int, int] = {}
    for row in records.read_jsonl(project.folder / "results/a" / folder / "index.jsonl"):
        assert (project.folder / "results/a" / folder / row["file"]).exists()
        found[row["step"]] = found.get(row["step"], 0) + 1
    return found


def page(project: Project) -> dict[str, Any]:
    text = project.read("results/a/report/index.html").decode()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data["versions"][0]


def test_a_persons_choice_draws_its_own_test_pictures_and_nothing_else(tested: Project, tmp_path: Path) -> None:
    project = Project(tmp_path / "project", tested.python)
    shutil.copytree(tested.folder, project.folder)
    result = project.folder / "results/a"
    rule = records.read_json(result / "best.json")["best_step"]
    assert steps(project, "samples") == {0: 5, 2: 5, 4: 5}
    assert steps(project, "test_samples") == {0: 10, rule: 10}
    shown = page(project)
    references = shown["best"]["references"]
    cells = {step: {name: [*cell] for name, cell in drawn.items()} for step, drawn in shown["samples"].items()}
    other = 6 - rule
    assert cells[str(other)] == {name: ["42"] for name in references[:5]}, "the grid's cells of one seed"
    assert cells["0"] == {**cells[str(other)], **{name: ["42", "43"] for name in references[5:]}}
    assert "test_mean" in shown["metrics"]["psnr_db"][str(rule)]
    assert "test_mean" not in shown["metrics"]["psnr_db"][str(other)]
    assert shown["metrics"]["psnr_db"][str(other)]["values"][5:] == [None] * 5

    times = {path: path.stat().st_mtime_ns for path in result.glob("samples/**/*.png")}
    kept = {*project.folder.glob(".sdlora/store/sample/*/*.png")}
    bytes_before = {path.name: path.read_bytes() for path in (result / "test_samples/step-000000").iterdir()}
    project.edit("params.yaml", "    train: {rank: 2}", f"    chosen: {other}\n    train: {{rank: 2}}")
    assert project.plan("results/a/report/index.html") == {"choose", "evaluate", "report"}
    project.snakemake("results/a/report/index.html")
    assert steps(project, "test_samples") == {0: 10, 2: 10, 4: 10}
    assert len({*project.folder.glob(".sdlora/store/sample/*/*.png")} - kept) == 10
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {p.name: p.read_bytes() for p in (result / "test_samples/step-000000").iterdir()} == bytes_before
    best = records.read_json(result / "best.json")
    assert (best["best_step"], best["overruled"]["best_step"]) == (other, rule)
    compared = project.command("sdlora", "compare", "a", "base")
    assert f"psnr_db,a,{other}," in compared.stdout and "note:" not in compared.stderr
    project.edit("params.yaml", "train: {rank: 2}", "train: {rank: 3}")
    compared = project.command("sdlora", "compare", "a", "base")
    assert "note: results/a is not what params.yaml, its data, the code and the packages make now" in compared.stderr
    project.edit("params.yaml", "train: {rank: 3}", "train: {rank: 2}")
    said = project.command("sdlora", "check", check=False)
    assert not said.returncode
    project.edit("params.yaml", f"chosen: {other}", "chosen: 3")
    assert "chosen is 3, but the checkpoints are 2, 4" in project.command("sdlora", "check", check=False).stderr
    project.edit("params.yaml", "chosen: 3", "flip: {swap_words: false}")
    said = project.command("sdlora", "check", check=False)
    assert said.returncode and "with different flip settings; give one of them its own dataset entry" in said.stderr


def test_a_metric_that_does_not_choose_draws_nothing(tested: Project, tmp_path: Path) -> None:
    project = Project(tmp_path / "project", tested.python)
    shutil.copytree(tested.folder, project.folder)
    project.edit("params.yaml", "bootstrap_samples: 100", "bootstrap_samples: 100, metrics: [effnet_lite0_distance]")
    assert project.plan("results/a/metrics.csv") == {"evaluate"}
    project.edit("params.yaml", "report_seeds: [42, 43]", "report_seeds: [42, 43, 44]")
    assert project.plan("results/a/metrics.csv") == {"choose", "evaluate"}
