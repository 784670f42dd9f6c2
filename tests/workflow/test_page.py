"""The pages in the real Chromium: every control, by mouse and by keyboard, and no request that leaves the machine."""

import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from browser import Page, count, needs_driver, page_of, text, visible
from helpers import Project

from sdlora import records
from sdlora.cli import main

pytestmark = needs_driver
SHOWN = visible("#gallery figure")


@pytest.fixture(scope="module")
def opened(built_once: Project) -> Iterator[tuple[Page, str]]:
    with page_of(built_once.folder) as (page, address):
        yield page, f"{address}/results"


@pytest.fixture
def index(opened: tuple[Page, str]) -> Page:
    page, address = opened
    page.open(f"{address}/report/index.html", 1400)
    return page


def test_the_grid_shows_versions_and_on_demand_checkpoints(index: Page) -> None:
    heads = "[...document.querySelectorAll('#grid thead th')].map((head) => head.innerText)"
    assert index.run(heads)[1:3] == ["reference", "no LoRA"] and len(index.run(heads)) == 5
    assert count(index, "#grid tbody tr") == 2 and count(index, "#grid tbody img") == 2 * 4
    index.run("document.querySelector('#columns').focus()")
    index.press("ArrowDown")
    index.until("document.querySelectorAll('#grid thead th.chosen').length === 1")
    assert index.run(heads)[1:] == ["reference", "no LoRA", "step 2", "step 4"]
    index.until("[...document.querySelectorAll('#grid img')].every((one) => one.naturalWidth > 0)")


def test_a_picture_opens_beside_another_and_steps_by_key(index: Page) -> None:
    index.click("#grid tbody tr td:nth-child(4) button")
    index.until("document.querySelector('#viewer').open")
    assert "step" in text(index, "#viewer-title") and text(index, "#viewer-prompt").startswith("captain")
    index.until("document.querySelector('#viewer-picture img').naturalWidth === 96")
    index.run("document.querySelector('#beside').focus()")
    index.press("ArrowDown")
    index.until("document.querySelector('#viewer-picture img-comparison-slider')")
    before = index.run("document.querySelector('img-comparison-slider').value")
    index.run("document.querySelector('img-comparison-slider').focus()")
    index.hold("ArrowLeft", 0.5)
    index.until(f"document.querySelector('img-comparison-slider').value !== {before}")
    index.press("Escape")
    index.until("!document.querySelector('#viewer').open")


def test_the_first_look_is_the_chosen_step_beside_the_base(index: Page) -> None:
    assert text(index, ".verdict .headline") == "Not tested: too few references"
    assert count(index, ".cards .glance") == 2 and count(index, ".cards .glance td") == 4
    index.click(".cards .glance button")
    index.until("document.querySelector('#viewer').open")
    assert text(index, "#viewer-title") == "a, " + text(index, "#grid thead th:nth-child(4)").rpartition(", ")[2]
    index.press("Escape")
    index.open(str(index.run("location.href")).replace("report/index.html", "b/report/index.html"), 1400)
    heads = "[...document.querySelectorAll('.glance th')].map((head) => head.innerText)"
    assert index.run(heads)[:2] == ["reference", "no LoRA"]
    shown = "[...document.querySelectorAll('.glance tr')].map((row) => row.querySelectorAll('img').length)"
    assert index.run(shown) == [2, 2, 2]


def test_arrow_keys_walk_the_grid_and_enter_opens(index: Page) -> None:
    index.run("document.querySelector('#grid tbody tr td:nth-child(3) button').focus()")
    index.press("ArrowDown", "ArrowRight")
    place = "(() => { const here = document.activeElement.closest('td');"
    assert index.run(f"{place} return [here.parentElement.sectionRowIndex, here.cellIndex]; }})()") == [1, 3]
    index.press("Enter")
    index.until("document.querySelector('#viewer').open")
    index.press("Escape")


def test_tables_sort_and_curves_can_be_left_out(index: Page) -> None:
    names = "[...document.querySelectorAll('#versions tbody tr td:first-child')].map((cell) => cell.innerText)"
    assert index.run(names) == ["a", "b"]
    assert count(index, "#versions td a") == count(index, "#verdicts strong a") == 2, "their pages were made before"
    index.click("#versions th:first-child")
    index.click("#versions th:first-child")
    index.until(f"{names}.join() === 'b,a'")
    assert count(index, "#plots canvas") == 5, "three metrics, the loss and the rate"
    series = "document.querySelectorAll('#plots .plot:first-child .u-series').length"
    assert index.run(series) == 3
    index.click("#curve-controls input")
    index.until(f"{series} === 2")


def test_the_reports_tables_are_on_the_page(index: Page) -> None:
    index.click("#as-reported summary")
    heads = "[...document.querySelectorAll('#as-reported th')].slice(0, 4).map((head) => head.innerText)"
    assert index.run(heads) == ["step", "image1", "image2", "mean"]
    titles = index.run("[...document.querySelectorAll('#as-reported h3')].map((head) => head.innerText)")
    assert titles == [f"{name}: {metric}" for name in "ab" for metric in ("effnet_lite0_distance", "psnr_db", "ssim")]
    assert index.run("document.querySelector('#as-reported td').innerText") == "a0"


def test_the_dataset_is_searched_and_pictures_say_where_they_come_from(index: Page) -> None:
    assert count(index, "#gallery figure") == 4
    assert "caption by BLIP" in text(index, "#gallery figcaption") and "padding" in text(index, "#gallery figcaption")
    word = str(index.run("document.querySelector('#gallery figcaption').innerText.split(',')[1].trim()"))
    index.click("#find")
    index.type("no such word")
    index.until(f"{SHOWN} === 0")
    index.run("document.querySelector('#find').select()")
    index.type(word)
    index.until(f"{SHOWN} > 0")


def test_a_vote_is_counted_and_can_be_saved(index: Page) -> None:
    index.click("#ballot button")
    index.until("document.querySelectorAll('#tally tbody tr').length === 2")
    assert not index.run("document.querySelector('#tally table').checkVisibility()"), (
        "it would say whose picture it was"
    )
    index.click("#standings summary")
    index.run("document.querySelector('#ballot button').focus()")
    index.press("1")
    index.until(
        "[...document.querySelectorAll('#tally tbody td:nth-child(3)')].every((cell) => cell.innerText === '2')"
    )
    saved = index.run("fetch(document.querySelector('#tally a').href).then((answer) => answer.text())")
    assert len(saved.splitlines()) == 2 and '"winner"' in saved


@pytest.fixture(scope="module")
def by_hand(
    built_once: Project, served: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Page, str, Project]]:
    """The project after a person's decisions in params.yaml."""
    folder = tmp_path_factory.mktemp("by-hand") / "project"
    shutil.copytree(built_once.folder, folder)
    project, best = Project(folder, served), records.read_json(folder / "results/b/best.json")
    other = 6 - best["best_step"]
    stranger = next((folder / "results/b/export/step-000004").glob("*a1111.safetensors"))
    shutil.copy(stranger, folder / "data/stranger.safetensors")
    project.edit("params.yaml", "run: [a, b]", "run: [a, b, stranger, both]")
    project.edit("params.yaml", "train: {rank: 2}", "train: {rank: 2, seeds: 2}")
    project.edit(
        "params.yaml",
        "train: {rank: 4}",
        f"""chosen: {other}
    train: {{rank: 4}}
  stranger: {{lora: data/stranger.safetensors, fit: {{method: center_crop}}}}
  both: {{lora: [{{version: a, weight: 0.5}}, {{file: data/stranger.safetensors}}]}}""",
    )
    said = project.snakemake("all")
    assert said.count("rule train:") == 1, "the first training is there"
    exported = next((folder / f"results/b/export/step-00000{other}").glob("*a1111.safetensors"))
    file = "results/b/b.safetensors"
    assert project.read(file) == exported.read_bytes() != built_once.read(file)
    found = {name: records.read_csv(folder / f"results/{name}/metrics.csv") for name in ("b", "stranger")}
    assert [row["mean"] for row in found["b"] if row["step"] != "2"] == [row["mean"] for row in found["stranger"]]
    assert project.read("results/stranger/stranger.safetensors") == stranger.read_bytes()
    assert not project.plan("all")
    with page_of(folder) as (page, address):
        yield page, f"{address}/results", project


@pytest.mark.parametrize("width", [390, 1400])
def test_a_persons_choice_is_shown_beside_the_rules(by_hand: tuple[Page, str, Project], width: int) -> None:
    page, address, _ = by_hand
    page.open(f"{address}/report/index.html", width)
    assert "Chosen by a person. The rule, earliest of 2 checkpoints" in text(page, ".verdict:nth-child(3)")
    heads = "[...document.querySelectorAll('#grid thead th')].map((head) => head.innerText)"
    assert [head.rpartition(", ")[2] for head in page.run(heads)[5:7]] == ["by a person", "by the rule"]
    assert "(rule: " in text(page, "#versions tbody tr:nth-child(3)")
    assert page.run("document.documentElement.scrollWidth") <= width


def test_a_lora_from_elsewhere_is_a_row_like_any_other(by_hand: tuple[Page, str, Project]) -> None:
    page, address, _ = by_hand
    page.open(f"{address}/report/index.html", 1400)
    names = "[...document.querySelectorAll('#versions tbody tr td:first-child')].map((cell) => cell.innerText)"
    assert page.run(names) == ["a", "a-seed43", "b", "both", "stranger"]
    assert "From elsewhere: data/stranger.safetensors at 1, sha256" in text(page, ".verdict:nth-child(5)")
    assert "From elsewhere: a, step-00000" in text(page, ".verdict:nth-child(4)")
    heads = page.run("[...document.querySelectorAll('#grid thead th')].map((head) => head.innerText)")
    assert heads[-2:] == ["both, as it came", "stranger, as it came"]
    page.open(f"{address}/stranger/report/index.html", 390)
    assert page.run("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize(("names", "columns"), [("a-vs-b", 5), ("stranger-vs-base", 3)])
def test_two_versions_or_one_and_the_base_are_compared(
    by_hand: tuple[Page, str, Project], names: str, columns: int
) -> None:
    page, address, project = by_hand
    project.snakemake(f"results/compare/{names}.html")
    one, other = names.split("-vs-")
    rows = records.read_csv(project.folder / f"results/compare/{names}.csv")
    assert {(row["one"], row["other"]) for row in rows} == {(one, other)}
    page.open(f"{address}/compare/{names}.html", 390)
    assert count(page, "#comparison tbody tr") == len(rows) == 3
    assert count(page, "#gallery figure") == 4, "also of a version that is not trained, which has padded pictures alone"
    assert count(page, "#grid thead th") == 1 + columns
    page.until("[...document.querySelectorAll('#grid img')].every((one) => one.naturalWidth > 0)")
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert "no independent test" in text(page, "#comparison-note") or "a person chose" in text(page, "#comparison-note")


def test_several_trainings_stand_beside_each_other_and_as_one(by_hand: tuple[Page, str, Project]) -> None:
    page, address, _ = by_hand
    page.open(f"{address}/report/index.html", 390)
    row = text(page, "#over-trainings tbody tr")
    assert row.startswith("a\t2\t") and "(between 0." in row and count(page, "#over-trainings tbody tr") == 1
    assert page.run("document.documentElement.scrollWidth") <= 390


def test_saved_votes_are_counted_beside_the_metrics(by_hand: tuple[Page, str, Project]) -> None:
    page, address, project = by_hand
    page.open(f"{address}/report/index.html", 1400)
    chosen = records.read_json(project.folder / "results/a/best.json")["best_step"]
    for name, value in (("a", f"a/{chosen}"), ("b", "stranger/1")):
        page.run(f"document.querySelector('#vote-{name}').value = '{value}'")
    page.run("document.querySelector('#vote-b').dispatchEvent(new Event('change'))")
    page.click("#ballot button")
    page.until("document.querySelectorAll('#tally tbody tr').length === 2")
    saved = page.run("fetch(document.querySelector('#tally a').href).then((answer) => answer.text())")
    (project.folder / "votes.jsonl").write_text(saved, encoding="utf-8")
    assert project.plan_list("all") == ["report"] * 5 + ["report_all"]
    project.snakemake("results/report/index.html", "results/a/report/index.html")
    (row,) = records.read_jsonl(project.folder / "votes.jsonl")
    won = row["winner"].partition("/")[0]
    table = {row["version"]: row for row in records.read_csv(project.folder / "results/report/versions.csv")}
    assert [table[name]["votes_won"] for name in ("a", "stranger")] == (["1", "0"] if won == "a" else ["0", "1"])
    assert table["a"]["votes"] == "1" and table["b"]["votes"] == ""
    for place in ("report", "a/report"):
        page.open(f"{address}/{place}/index.html", 390)
        assert "of 1 (at least 0." in text(page, "#versions")
        assert count(page, "#tally tbody tr") == (2 if place == "report" else 1), "and votes go on from there"
        assert page.run("document.documentElement.scrollWidth") <= 390
    with chdir(project.folder):
        main(["compare", "a", "stranger"])
    page.open(f"{address}/compare/a-vs-stranger.html", 390)
    assert count(page, "#tally tbody tr") == 2, "a comparison counts them, too"


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_wider_than_the_window_and_nothing_leaves_the_machine(opened: tuple[Page, str], width: int) -> None:
    page, address = opened
    for place in ("report/index.html", "a/report/index.html"):
        page.open(f"{address}/{place}", width)
        assert page.run("document.documentElement.scrollWidth") <= width
        assert all(name.startswith(address.removesuffix("results")) for name in page.asked())
        assert count(page, "#grid tbody tr") == 2
