"""A search through the real DAG: killed twice and gone on with, it is the study of a search that nobody disturbed."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import SMALL, Project, kill_all_at_work, make_project, wait_for

from sdlora import records
from sdlora.config.load import load

# Nothing is captioned by a network, and each picture is drawn in one step: what is tested is who asks for what.
PARAMS = (
    SMALL.replace(
        "{inference_steps: 3, max_references: 2, hires: {factor: 1.5, denoising_strength: 0.35}}",
        "{inference_steps: 1, max_references: 2, batch_size: 2, report_seeds: [42]}",
    )
    .replace("{bootstrap_samples: 100}", "{bootstrap_samples: 100, metrics: [psnr_db], choose_by: psnr_db}")
    .replace("defaults:", "defaults:\n  caption: {by: none}")
)
# The trials are drawn in 1, 2 and 3 steps, which come to 8.2, 9.4 and 8.4 dB, whatever is learnt: the same order on
# every kind of CPU, with the second the best, and the third worse at step 2 than the median of the others.
SEARCH = (
    "sdlora", "search", "s", "--like", "a", "--set", "train.rank=2,4", "--set", "train.learning_rate=1e-6..3:log",
    "--set", "sample.inference_steps=1..3", "--trials", "3", "--at-once", "2", "--startup", "1", "--seed", "74",
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose dataset is made."""
    project = make_project(tmp_path_factory.mktemp("s") / "project", PARAMS, served, embedded_base=True)
    project.snakemake("datasets")
    return project


@pytest.fixture(scope="module")
def searched(prepared: Project) -> tuple[Project, str]:
    """A search that nobody disturbed, and what it said."""
    project = Project(prepared.folder.with_name("searched"), prepared.python)
    shutil.copytree(prepared.folder, project.folder)
    return project, project.command(*SEARCH).stdout


def table(project: Project, name: str = "s") -> list[dict[str, str]]:
    return records.read_csv(project.folder / f"results/searches/{name}/trials.csv")


def probe(project: Project, number: int, step: int) -> dict[str, Any]:
    found: dict[str, Any] = records.read_json(project.folder / f"results/s-trial{number}/probes/step-{step}/probe.json")
    return found


def test_trials_are_measured_given_up_and_written_down(searched: tuple[Project, str]) -> None:
    project, said = searched
    rows = table(project)
    assert [row["version"] for row in rows] == ["s-trial0", "s-trial1", "s-trial2"]
    assert [row["came_to"] for row in rows] == ["its end", "its end", "given up at step 2"]
    for row in rows[:2]:
        measured = probe(project, int(row["trial"]), 4)
        assert float(row["psnr_db"]) == pytest.approx(measured["values"][row["step"]], abs=1e-3)
        assert float(row["at_2"]) == pytest.approx(measured["values"]["2"], abs=1e-3)
    measured = probe(project, 2, 2)
    states = project.folder / ".sdlora/store/train" / measured["run"] / "state"
    assert [path.name for path in states.iterdir()] == ["step-000002"], "the rest of its training was never done"
    assert not (project.folder / "results/s-trial2/probes/step-4").exists()
    assert rows[2]["psnr_db"] == "" and float(rows[2]["at_2"]) == pytest.approx(measured["values"]["2"], abs=1e-3)

    best = max(rows[:2], key=lambda row: float(row["psnr_db"]))
    assert [row["sample.inference_steps"] for row in rows] == ["1", "2", "3"] and best is rows[1]
    assert f"Best of 3 trials (2 came to their end): trial {best['trial']}, " in said
    made = {path.parent.name for path in project.folder.glob("results/*/metrics.csv")}
    assert made == {best["version"]}, "the best trial alone is made whole"
    figures = records.read_json(project.folder / "results" / best["version"] / "best.json")
    assert figures["best_step"] == int(best["step"])
    assert figures["validation"]["figures"]["psnr_db"]["best"] == pytest.approx(float(best["psnr_db"]), abs=1e-3)
    plan = project.plan()
    assert "probe" not in plan and "train" in plan, "`all` makes a and b, and no trial"


def test_the_lines_for_params_yaml_are_the_best_trial(searched: tuple[Project, str], tmp_path: Path) -> None:
    project, said = searched
    lines = re.findall(r"(?:^  .*\n)+", said, re.MULTILINE)[-1]
    shutil.copytree(project.folder / "searches", tmp_path / "searches")
    (tmp_path / "params.yaml").write_text(PARAMS + lines, encoding="utf-8")
    versions = load(tmp_path / "params.yaml").versions
    best = max(table(project)[:2], key=lambda row: float(row["psnr_db"]))
    ours, theirs = versions["s-best"].model_dump(), versions[best["version"]].model_dump(exclude={"prune_at"})
    assert ours["train"].pop("seeds") == 3 and theirs["train"].pop("seeds") == 1
    assert ours == theirs and "s-best-seed43" in versions


def test_the_page_has_every_trial_and_asks_no_network(searched: tuple[Project, str]) -> None:
    project, _ = searched
    page = project.read("results/searches/s/index.html").decode()
    body = page[page.index("<tbody>", page.index('id="table"')) :]
    assert re.findall(r"<tr[^>]*><td[^>]*>(\d[^<]*)</td>", body) == ["0 (a itself)", "1", "2"]
    assert (places := re.findall(r'<td data-sort="([^"]+)">', body)) and not any("e" in place for place in places)
    assert "s-trial0/report/index.html" in page and "Ringed: a itself." in page
    assert page.count(' itself"><title>') == 1
    assert len(re.findall(r">no LoRA(?:: [\d.]+, (?:above|below))?</text>", page)) == 1
    assert page.count("<circle") == 3 and len(re.findall(r'<polyline points="[^"]+" class="trial', page)) == 3
    assert "<code>snakemake results/s-best/metrics.csv</code>" in page and "`" not in page[: page.index("<script>")]
    assert "luckiest" in page and "s-best:" in page and "train.learning_rate (log)" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)


def test_killed_three_times_it_is_the_same_study(prepared: Project, searched: tuple[Project, str]) -> None:
    undisturbed, _ = searched
    project = Project(prepared.folder.with_name("killed"), prepared.python)
    shutil.copytree(prepared.folder, project.folder)
    folder, pages = project.folder, project.folder / "results/searches/s"
    kill_when(project, lambda: [*folder.glob(".sdlora/store/train/*/state/step-000002/manifest.json")])
    assert not pages.exists() and len([*folder.glob("results/s-trial*")]) < 2, "in the middle of the first training"
    kill_when(project, lambda: (folder / "results/s-trial2/probes/step-2").exists())
    assert len(table(project)) == 2, "while the third is measured"
    kill_when(project, lambda: pages.exists() and len(table(project)) == 3, "--trials", "3")
    for path in ("results/searches/s/trials.csv", "searches/s/trials.yaml", "searches/s/study.yaml"):
        assert project.read(path) == undisturbed.read(path), path


def kill_when(project: Project, found: Callable[[], object], *words: str) -> None:
    """Start the search, as at first or with some words, and `kill -9` it and everything that works for it."""
    log = project.folder / "said.txt"
    with log.open("a") as said:
        run = subprocess.Popen(
            [*SEARCH[:3], *words] if words else SEARCH, cwd=project.folder, env=project.environment(),
            start_new_session=True, stdout=said, stderr=said,
        )  # fmt: skip
    wait_for(lambda: found() or run.poll() is not None)
    assert run.poll() is None, f"it ended before it could be killed: {log.read_text()[-3000:]}"
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    kill_all_at_work(project.folder)


def test_a_grid_goes_on_with_what_was_given_up_and_trains_what_a_version_would(searched: tuple[Project, str]) -> None:
    """Stopped at step 2 and gone on with by another search, or at once: the same bytes."""
    project, _ = searched
    given_up = table(project)[2]
    rate, rank = given_up["train.learning_rate"], given_up["train.rank"]
    words = ("--like", "a", "--set", f"train.rank={rank}", "--set", f"train.learning_rate={rate},1e-2", "--grid")
    words = (*words, "--by", "validation_loss")
    project.command("sdlora", "search", "g", *words, "--seed", "11", "--trials", "1")
    (row,) = table(project, "g")
    version = row["version"]
    assert row["train.learning_rate"] == rate and row["came_to"] == "its end"
    values = records.read_json(project.folder / f"results/{version}/probes/step-4/probe.json")["values"]
    assert 0 < float(row["validation_loss"]) == pytest.approx(values[row["step"]], rel=1e-3)
    assert "validation_loss" in project.read("results/searches/g/index.html").decode()
    assert "resuming from step 2 of 4" in project.read(f"logs/{version}/probe-4.log").decode()
    run = probe(project, 2, 2)["run"]
    store = project.folder / ".sdlora/store/train" / run
    ours = (store / "checkpoints/step-000004/pytorch_lora_weights.safetensors").read_bytes()
    shutil.rmtree(store)
    project.snakemake(f"results/{version}/train_log.csv")
    theirs = project.read(f"results/{version}/checkpoints/step-000004/pytorch_lora_weights.safetensors")
    assert theirs == ours


def test_a_trial_that_fails_stops_the_search_and_is_left_out_by_hand(
    searched: tuple[Project, str], tmp_path: Path
) -> None:
    project = Project(tmp_path / "project", searched[0].python)
    shutil.copytree(searched[0].folder, project.folder)
    (project.folder / "searches/s/trials.yaml").unlink()  # the journal has what is needed
    more = ("sdlora", "search", "s", "--trials", "4")
    for option, said in (("--allowed-rules", "ended with 1"), ("--until", "has not made results/s-trial3/probes/")):
        failed = project.command(*more, "--", option, "fit", check=False)
        assert failed.returncode == 1 and len(table(project)) == 3
        assert f"error: Snakemake {said}" in failed.stderr
        assert "; no trial was begun: what it said above tells why. The same command goes on" in failed.stderr
    assert "--leave-out: at work are 3" in project.command(*more, "--leave-out", "1", check=False).stderr
    assert "Nothing to be done" in project.command(*more, "--leave-out", "3").stderr, "the best one is made already"
    assert [row["came_to"] for row in table(project)][2:] == ["given up at step 2", "left out by hand"]
    (page,) = project.folder.glob("results/s-trial*/report/index.html")
    page.unlink()
    failed = project.command(*more, "--", "--allowed-rules", "fit", check=False)
    best = page.parent.parent.name
    assert f"but of the best one, {best}, not all was made: Snakemake ended with 1" in failed.stderr
    assert "`sdlora search s --trials 4 -- --allowed-rules fit` makes the rest" in failed.stderr


def test_a_training_that_diverges_is_a_trial_too(searched: tuple[Project, str], tmp_path: Path) -> None:
    project = Project(tmp_path / "project", searched[0].python)
    shutil.copytree(searched[0].folder, project.folder)
    words = ("--like", "a", "--set", "train.rank=2,4", "--set", "train.learning_rate=10", "--prune-at", "none")
    said = project.command("sdlora", "search", "d", *words, "--trials", "1").stdout
    assert "none of 1 trials has come to its end" in said and "Best of" not in said
    (row,) = table(project, "d")
    assert row["came_to"].startswith("diverged: the ") and row["psnr_db"] == ""
    assert "Too few trials" in project.read("results/searches/d/index.html").decode()


def test_what_would_mix_studies_is_refused(searched: tuple[Project, str], tmp_path: Path) -> None:
    project = Project(tmp_path / "project", searched[0].python)
    shutil.copytree(searched[0].folder, project.folder)
    said = project.command(
        "sdlora", "search", "c", "--like", "a", "--set", "flip.swap_words=true,false", check=False
    ).stderr  # fmt: skip
    assert "both write data/sets/small/pad-edge-64 but with different flip settings" in said
    fit = project.folder / "data/sets/small/pad-edge-64/made/fit.json"
    made = records.read_json(fit)
    records.write_json(fit, {**made, "outputs": {**made["outputs"], **dict.fromkeys([*made["outputs"]][:1], "0")}})
    said = project.command("sdlora", "search", "s", "--trials", "4", check=False).stderr
    assert "since trial 0 of s was measured, made from" in said and "begin another search" in said
    fit.write_bytes(searched[0].read("data/sets/small/pad-edge-64/made/fit.json"))
    project.edit("params.yaml", "learning_rate: 1e-3", "learning_rate: 1e-3, weight_decay: 0.5")
    said = project.command("sdlora", "search", "s", "--trials", "4", check=False).stderr
    assert (
        "search s began otherwise: version.train.weight_decay was 0.01 and is 0.5" in said and "Traceback" not in said
    )
    code = "import sys, sdlora.cli, sdlora.flow.plan; sys.exit('optuna' in sys.modules)"
    project.command(sys.executable, "-c", code)
