"""What the pages hold: intervals of each checkpoint, masks and copies of a set."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chosen import PSNR
from small_results import REPLACED, make_page, make_set, refuse
from small_set import edited

from sdlora import records
from sdlora.config.evaluate import Evaluate
from sdlora.flow import plan
from sdlora.stages.adopt.recipe import FACTS
from sdlora.stages.evaluate.choose import Choice, explain
from sdlora.stages.evaluate.statistics import LEAST_RESAMPLED
from sdlora.stages.evaluate.tables import VERDICTS, Table, Values, difference, metrics_columns, metrics_rows
from sdlora.stages.report.data import metrics_of
from sdlora.stages.report.dataset import REFUSED
from sdlora.stages.report.page import read_part, write_index
from sdlora.stages.report.recipe import ReportAllRecipe, ReportRecipe


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A version of two checkpoints with a test, and its page."""
    folder = tmp_path_factory.mktemp("page")
    fitted = make_set(folder / "data/sets/small", 64, masked=True)
    mine = refuse(fitted.parent, REFUSED)
    return folder, data_of(make_page(folder, {"a": fitted}, (0, 2, 4), folders={"a": (mine,)}))


def test_a_checkpoint_s_interval_is_the_one_of_the_choice(shown: tuple[Path, dict[str, Any]]) -> None:
    """Of the chosen step it is what best.json says; the table it is computed from has four decimals."""
    folder, data = shown
    best = records.read_json(folder / "results/a/best.json")
    for metric, steps in data["versions"][0]["metrics"].items():
        assert steps["0"]["against"] == {} and steps["2"]["against"].keys() == {"validation"}
        for part in ("validation", "test"):
            told = best[part]["figures"][metric]
            for key, value in steps["4"]["against"][part].items():
                assert value == pytest.approx(told[key], abs=2e-4)


def test_a_picture_s_interval_is_over_its_seeds(shown: tuple[Path, dict[str, Any]]) -> None:
    folder, data = shown
    best = records.read_json(folder / "results/a/best.json")
    steps = data["versions"][0]["metrics"]["psnr_db"]
    assert steps["0"]["by_reference"] == steps["2"]["by_reference"] == {}, "one seed has no interval"
    found = steps["4"]["by_reference"]
    assert [*found] == best["test"]["references"] and {one["seeds"] for one in found.values()} == {4}
    mean = sum(one["delta"] for one in found.values()) / len(found)
    assert mean == pytest.approx(best["test"]["figures"]["psnr_db"]["delta"], abs=1e-3)
    assert all(one["ci_low"] < one["delta"] < one["ci_high"] for one in found.values())


def test_each_picture_has_its_own_value(shown: tuple[Path, dict[str, Any]]) -> None:
    folder, data = shown
    references = records.read_json(folder / "results/a/best.json")["references"]
    for steps in data["versions"][0]["metrics"].values():
        assert {len(seeds) for seeds in steps["4"]["by_picture"].values()} == {1, 4}
        for reference, seeds in steps["4"]["by_picture"].items():
            value = steps["4"]["values"][references.index(reference)]
            assert sum(seeds.values()) / len(seeds) == pytest.approx(value, abs=2e-4)


@pytest.mark.parametrize("samples", [100, 300])
def test_intervals_have_the_resamples_that_the_version_asks_for(tmp_path: Path, samples: int) -> None:
    """Of twenty references, and of one reference of twenty seeds, from which on an interval is a bootstrap's."""
    gains = np.random.default_rng(1).normal(1.0, 1.0, LEAST_RESAMPLED).round(4).tolist()
    names = [f"r{number:02}" for number in range(len(gains))]
    settings = Evaluate(metrics=("psnr_db",), choose_by="psnr_db", bootstrap_samples=samples)
    values: Values = {("psnr_db", 0): [0.0] * len(gains), ("psnr_db", 2): gains}
    table = Table(names, values, [42])
    best = explain(table, None, {"psnr_db": PSNR}, settings, Choice(2))
    records.write_csv(tmp_path / "metrics.csv", metrics_columns(len(names)), metrics_rows(table, None, samples))
    rows = [["validation", step, "a", n, "", value] for (_, step), own in values.items() for n, value in enumerate(own)]
    records.write_csv(tmp_path / "pictures.csv", ["part", "step", "reference", "seed", "file", "psnr_db"], rows)
    found = metrics_of(tmp_path, json.loads(json.dumps(best)))["psnr_db"]["2"]
    wanted = difference(gains, [0.0] * len(gains), samples)
    for figures in (found["against"]["validation"], found["by_reference"]["a"]):
        assert [figures[key] for key in ("ci_low", "ci_high")] == [wanted[key] for key in ("ci_low", "ci_high")]


def test_padding_and_masks_are_told(shown: tuple[Path, dict[str, Any]]) -> None:
    _, data = shown
    (found,) = data["datasets"].values()
    for row in found["pictures"]:
        assert row["box"] == [0, 0.125, 1, 0.75] and row["share"] == 0.75 and row["aspect"] == 1
        assert row["mask"] in data["thumbnails"]


def test_what_was_refused_leads_to_what_stayed(shown: tuple[Path, dict[str, Any]]) -> None:
    _, data = shown
    (found,) = data["datasets"].values()
    assert (len(found["refused"]), found["refused_of"]) == (REFUSED, REFUSED + 5)
    rows = {row["name"]: row for row in found["refused"]}
    first = found["pictures"][0]["id"]
    stayed = {name: rows[name]["copy_of"]["id"] for name in ("again.png", "smaller.png", "replaced.jpg", "same.png")}
    assert stayed == dict.fromkeys(stayed, first), f"what again.png was held against, {REPLACED}, was refused later"
    assert rows["test.png"]["copy_of"]["reference"] and not rows["again.png"]["copy_of"]["reference"]
    assert rows["https://x.example/0"]["copy_of"] is None
    there = {name for name, row in rows.items() if row["picture"] in data["thumbnails"]}
    assert there == {"again.png", "smaller.png", "same.png"}, "in the user's folder, or beside its like in raw/"


def test_a_refused_name_leads_out_of_no_folder(tmp_path: Path) -> None:
    """A shared set's table may name any file of this machine; its hash may be known, too."""
    fitted = make_set(tmp_path / "data/sets/small", 32)
    mine = refuse(fitted.parent, 0)
    (mine / "again.png").rename(mine.parent / "again.png")
    rows = records.read_jsonl(fitted.parent / "rejected.jsonl")
    rows[0]["name"] = "../again.png"
    rows[1]["sha256"] = "0" * 64
    records.write_jsonl(fitted.parent / "rejected.jsonl", rows)
    (found,) = data_of(make_page(tmp_path, {"a": fitted}, (0, 2), folders={"a": (mine,)}))["datasets"].values()
    assert [row["picture"] for row in found["refused"][:3]] == [None, None, None]


def test_a_page_has_the_verdict_of_best_json_and_words_for_each(tmp_path: Path) -> None:
    """Whatever the sentence beside it begins with."""
    fitted = make_set(tmp_path / "data/sets/small", 32)
    page = make_page(tmp_path, {"a": fitted}, (0, 2))
    path = tmp_path / "results/a/best.json"
    records.write_json(path, {**records.read_json(path), "verdict": "worse", "why": "better, it says"})
    write_index({"a": {}}, tmp_path / "results", page.parent, {"a": fitted}, {"a": fitted})
    (found,) = data_of(page)["versions"]
    assert found["verdict"] == "worse" and found["why"] == "better, it says"
    words = re.search(r"const HEADLINES = \{(.*?)\n\};", read_part("templates/page.js"), re.DOTALL)
    assert words and tuple(re.findall(r'^  "?([a-z ]+)"?: \[', words[1], re.M)) == VERDICTS


@pytest.mark.parametrize(("names", "verdicts"), [("a", ["better"]), ("abc", ["unresolved"] * 3)])
def test_a_headline_is_corrected_over_the_versions_of_its_page(tmp_path: Path, names: str, verdicts: list[str]) -> None:
    """As the numbers beside it are: of three versions with a p of 0.04 none is surely better."""
    fitted = make_set(tmp_path / "data/sets/small", 32)
    make_page(tmp_path, {"a": fitted}, (0, 2))
    best = records.read_json(tmp_path / "results/a/best.json")
    best["test"]["figures"]["psnr_db"]["p"] = 0.04
    for name in names:
        if name != "a":
            shutil.copytree(tmp_path / "results/a", tmp_path / "results" / name)
        records.write_json(tmp_path / f"results/{name}/best.json", {**best, "verdict": "better", "why": "it says"})
    sets = dict.fromkeys(names, fitted)
    page, table = write_index(
        {name: {} for name in names}, tmp_path / "results", tmp_path / "results/report", sets, sets
    )
    found = data_of(page)["versions"]
    assert [version["verdict"] for version in found] == verdicts == [row["verdict"] for row in records.read_csv(table)]
    unsure = "it says; among the 3 versions of this page it is not sure (Holm's p 0.12)"
    assert {version["why"] for version in found} == {"it says" if names == "a" else unsure}


def test_a_reference_is_linked_in_full_size(shown: tuple[Path, dict[str, Any]]) -> None:
    folder, data = shown
    (references,) = data["references"].values()
    assert all((folder / "results" / row["file"]).is_file() for row in references.values()) and len(references) == 10


def test_a_lora_from_elsewhere_is_told_of_as_it_came(shown: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """It has no steps: the step that it stands for is another's word."""
    folder, data = shown
    shutil.copytree(folder / "results/a", tmp_path / "results/a")
    best = records.read_json(tmp_path / "results/a/best.json")
    assert data["versions"][0]["why"] == best["why"]
    why = "worse than step 0: step 1: mean ssim 0.5, -0.1 against step 0 [-0.2, -0.1] on 5 test references"
    records.write_json(tmp_path / "results/a/best.json", {**best, "why": why, "best_step": 1})
    records.write_json(tmp_path / "results/a/checkpoints" / FACTS, [{"name": "x", "weight": 1.0, "sha256": "0" * 64}])
    fitted = folder / "data/sets/small/pad"
    page, _ = write_index({"a": {}}, tmp_path / "results", tmp_path / "results/report", {"a": fitted}, {"a": fitted})
    (found,) = data_of(page)["versions"]
    assert found["why"] == why.replace("step 1", "as it came") and "step 0" in found["why"]


def test_a_user_s_own_folders_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = plan.jobs(edited(tmp_path))
    (own,) = {job.folders for job in jobs if isinstance(job, ReportRecipe)}
    (over_all,) = (job.folders for job in jobs if isinstance(job, ReportAllRecipe))
    assert own == (Path("data/embedded/small"),) and over_all == {"a": own, "b": own}
