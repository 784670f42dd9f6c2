"""Scraping in the DAG: real Snakemake, the real package and a real browser, on a web of this machine's own."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest
from helpers import SMALL, Project, kill_all_at_work, make_project, wait_for
from rig import SCRIPT, Rig, Search, picture, results
from rocrate.rocrate import ROCrate
from stage_server import Job

from sdlora import records

MANIFEST = "data/sets/pixels/manifest.jsonl"
LICENSED = "{kind: selenium, query: pixel illustration, licence: share, limit: 50}"
PARAMS = (
    SMALL.replace("threads: 1", "scraping: true\nthreads: 1")
    .replace("run: [a, b]", "run: [a]")
    .replace("defaults:", "defaults:\n  caption: {max_new_tokens: 4, batch_size: 32}")  # of a hundred pictures
    .replace("max_references: 2, hires: {factor: 1.5, denoising_strength: 0.35}", "max_references: 1")
    .replace(
        "  small:\n",
        f"""  pixels:
    sources:
      - {{kind: bing, query: pixel illustration, limit: 50}}
      - {LICENSED}
    trigger: pixel illustration
    minimum: 50
    held_out: 5
    scrape: {{host_rate_per_s: 100}}
  small:
""",
    )
    .replace("    train: {rank: 2}", "    dataset: pixels\n    train: {rank: 2}")
)


def searched(endpoint: Iterable[int], page: Iterable[int]) -> Search:
    """What both faces of the search find; the page has a licence filter, which its pictures pass."""
    passed = frozenset({"license-L2_L3_L4_L5_L6_L7"})
    return Search(endpoint=results(endpoint), page=tuple(replace(one, filters=passed) for one in results(page)))


SEARCH = searched(range(70), range(45, 125))


@dataclass
class Scraped:
    """A project and the web it scrapes."""

    project: Project
    rig: Rig

    def rows(self) -> list[records.Row]:
        return records.read_jsonl(self.project.folder / MANIFEST)

    def pictures(self) -> set[str]:
        return {row["sha256"] for row in self.rows()}

    def searches(self) -> int:
        return len(self.rig.requests("www.bing.com", "/images/"))

    def fetched(self) -> Counter[str]:
        return Counter(request.url for request in self.rig.requests("", "/picture/"))


def project_with_rig(folder: Path, params: str = PARAMS, delay_s: float = 0.0, python: Path | None = None) -> Scraped:
    project = make_project(folder, params, python)
    (project.folder / "workflow/scripts/scrape.py").write_text(SCRIPT, encoding="utf-8")
    return Scraped(project, Rig(project.folder / "rig", {"pixel illustration": SEARCH}, delay_s))


@pytest.fixture(scope="module")
def scraped_once(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """The whole way from two searches to a table; not changed by tests."""
    found = project_with_rig(tmp_path_factory.mktemp("scraped") / "project", python=served)
    with found.rig:
        found.project.snakemake("results/a/metrics.csv")
        yield found


@pytest.fixture
def scraped(scraped_once: Scraped, tmp_path: Path) -> Iterator[Scraped]:
    """A copy of it, with a web of its own that has changed in the meantime: other pictures in another order."""
    shutil.copytree(scraped_once.project.folder, tmp_path / "project")
    changed = searched(range(260, 190, -1), range(400, 300, -1))
    with Rig(tmp_path / "project/rig", {"pixel illustration": changed}) as rig:
        yield Scraped(Project(tmp_path / "project", scraped_once.project.python), rig)


def test_fifty_by_bing_and_fifty_by_selenium_become_one_dataset_and_a_table(scraped_once: Scraped) -> None:
    rows = scraped_once.rows()
    assert Counter(row["engine"] for row in rows) == {"bing": 50, "selenium": 50}
    assert len({row["sha256"] for row in rows}) == len({row["url"] for row in rows}) == 100
    rejected = records.read_jsonl(scraped_once.project.folder / "data/sets/pixels/rejected.jsonl")
    twice = {row["url"] for row in rejected if row["kind"] == "duplicate"}
    assert {f"https://pictures-{n % 4}.example/picture/{n}.jpg" for n in range(45, 50)} <= twice
    assert not scraped_once.rig.refused
    table = records.read_csv(scraped_once.project.folder / "results/a/metrics.csv")
    assert [row["step"] for row in table if row["metric"] == "psnr_db"] == ["0", "2", "4"]
    captions = records.read_jsonl(next((scraped_once.project.folder / "data/sets/pixels").glob("*/captions.jsonl")))
    assert len(captions) == 100 and all(row["caption"].startswith("pixel illustration") for row in captions)


def test_the_lora_leads_back_to_each_pictures_url_and_licence(scraped: Scraped) -> None:
    said = scraped.project.command("sdlora", "provenance", "a").stdout
    assert "to 100 pictures" in said and "url not recorded" not in said
    assert "licence not recorded: 50 of 100 pictures" in said
    crate = ROCrate(scraped.project.folder / "results/a")
    pictures = {one["sha256"]: one.properties() for one in crate.get_by_type("ImageObject")}
    assert pictures.keys() == scraped.pictures()
    for row in scraped.rows():
        found = pictures[row["sha256"]]
        number = int(found["contentUrl"].rpartition("/")[2].removesuffix(".jpg"))
        assert sha256(picture(number)).hexdigest() == row["sha256"], "the URL is this picture's"
        licence = {"selenium": "share, says the search", "bing": {"@id": "#no-licence"}}
        assert found["license"] == licence[row["engine"]]


def test_a_changed_web_and_changed_code_change_nothing(scraped: Scraped) -> None:
    scraped.project.edit("src/sdlora/stages/scrape/bing.py", "MAX_PAGES = 60", "MAX_PAGES = 61")
    scraped.project.edit("src/sdlora/stages/scrape/fetch.py", "MAX_REDIRECTS = 5", "MAX_REDIRECTS = 6")
    assert not scraped.project.plan("results/a/metrics.csv")
    assert "Nothing to be done" in scraped.project.snakemake("results/a/metrics.csv")
    scraped.project.edit("params.yaml", "scraping: true", "scraping: false")
    assert not scraped.project.plan("results/a/metrics.csv"), "the switch says nothing about what is there"
    assert not scraped.searches()


def test_forceall_does_not_scrape(scraped: Scraped) -> None:
    before = scraped.project.read(MANIFEST)
    text = scraped.project.snakemake(MANIFEST, "--forceall")
    assert "the web is not asked" in text
    assert scraped.project.read(MANIFEST) == before
    assert not scraped.rig.log


def test_other_references_need_no_web(scraped: Scraped) -> None:
    before = scraped.pictures()
    scraped.project.edit("params.yaml", "held_out: 5", "held_out: 9")
    scraped.project.edit("params.yaml", "scraping: true", "scraping: false")
    scraped.project.snakemake(MANIFEST)
    assert scraped.pictures() == before
    assert sum(row["split"] == "reference" for row in scraped.rows()) == 9
    assert not scraped.rig.log


def test_a_changed_query_says_what_to_type(scraped: Scraped) -> None:
    scraped.project.edit("params.yaml", "limit: 50}", "limit: 40}")
    text = scraped.project.snakemake("results/a/metrics.csv", check=False)
    assert "sources[0].limit was 50, is 40" in text
    assert f"`snakemake {MANIFEST} --forcerun scrape`" in text
    assert (scraped.project.folder / MANIFEST).exists() and not scraped.rig.log
    scraped.project.edit("params.yaml", "limit: 40", "limit: 50")
    assert not scraped.project.plan("results/a/metrics.csv")


def test_a_lost_picture_is_not_scraped_again_by_itself(scraped: Scraped) -> None:
    lost = scraped.project.folder / "data/sets/pixels/raw" / scraped.rows()[0]["file"]
    lost.unlink()
    text = scraped.project.snakemake("results/a/metrics.csv", check=False)
    assert "1 scraped pictures are gone or damaged" in text and "dvc checkout data/sets" in text
    assert not scraped.rig.log


def test_forcerun_scrapes_again(scraped: Scraped) -> None:
    before = scraped.pictures()
    scraped.project.edit("params.yaml", "scraping: true", "scraping: false")
    text = scraped.project.snakemake(MANIFEST, "--forcerun", "scrape", check=False)
    assert "is scraped, but scraping is off" in text and scraped.pictures() == before
    scraped.project.edit("params.yaml", "scraping: false", "scraping: true")
    scraped.project.edit(
        "params.yaml",
        LICENSED,
        "{kind: folder, path: data/embedded/small}",
    )
    text = scraped.project.snakemake(MANIFEST, "--forcerun", "scrape")
    assert text.count("scraping: please note") == 1 and "policies/web-crawling" in text
    new = {row["sha256"] for row in scraped.rows() if row["engine"] == "bing"}
    assert len(new) == 50 and not new & before
    assert {path.stem for path in (scraped.project.folder / "data/sets/pixels/raw").iterdir()} == scraped.pictures()
    assert scraped.project.plan("results/a/metrics.csv") >= {"fit", "train", "evaluate"}


def test_a_second_scrape_that_fails_loses_nothing(scraped: Scraped) -> None:
    before = scraped.project.read(MANIFEST)
    scraped.rig.searches.clear()
    text = scraped.project.snakemake(MANIFEST, "--forcerun", "scrape", check=False)
    assert "0 usable training pictures" in text and "no result for 'pixel illustration'" in text
    asked = len(scraped.rig.log)
    scraped.project.snakemake(MANIFEST)
    assert scraped.project.read(MANIFEST) == before and len(scraped.rig.log) == asked


def test_dvc_brings_old_pictures_and_results_back(scraped: Scraped) -> None:
    def record(message: str) -> None:
        scraped.project.command("git", "add", "-A")
        scraped.project.command("git", "commit", "-q", "-m", message)

    scraped.project.command("git", "init", "-q", "-b", "main")
    scraped.project.command("dvc", "init", "-q")
    scraped.project.command("dvc", "repro", "-q", "datasets")
    record("as it was")
    before = scraped.project.read(MANIFEST)
    assert not scraped.rig.log
    scraped.project.snakemake(MANIFEST, "--forcerun", "scrape")
    scraped.project.command("dvc", "commit", "-q", "-f", "datasets")
    record("another web")
    asked = len(scraped.rig.log)
    assert asked and scraped.project.read(MANIFEST) != before
    assert "train" in scraped.project.plan("results/a/metrics.csv")
    scraped.project.command("git", "checkout", "-q", "HEAD~1")
    scraped.project.command("dvc", "checkout", "-q", "data/sets")  # no stage has recorded the results
    assert scraped.project.read(MANIFEST) == before
    assert not scraped.project.plan("results/a/metrics.csv")
    assert len(scraped.rig.log) == asked


def test_scraping_is_off_unless_it_is_turned_on(served: Path, tmp_path: Path) -> None:
    found = project_with_rig(tmp_path / "project", PARAMS.replace("scraping: true\n", ""), python=served)
    with found.rig:
        for words in (["results/a/metrics.csv"], ["-n", "results/a/metrics.csv"], [MANIFEST, "--forcerun", "scrape"]):
            text = found.project.snakemake(*words, check=False)
            assert "datasets.pixels comes from the web and has no pictures yet, but scraping is off" in text
            assert "set `scraping: true`" in text
        assert not found.rig.log


def test_kill_9_and_again_gives_the_same_set_and_repeats_no_request(served: Path, tmp_path: Path) -> None:
    params = PARAMS.replace(f"      - {LICENSED}\n", "")
    params = params.replace("minimum: 50", "minimum: 45")
    found, straight = (
        project_with_rig(tmp_path / "killed", params, 0.15, served),
        project_with_rig(tmp_path / "straight", params, python=served),
    )
    with straight.rig:
        straight.project.snakemake(MANIFEST)
    with found.rig:
        words = ("snakemake", "--cores", "1", MANIFEST)
        run = Job.start(served, "-m", *words, folder=found.project.folder, log=tmp_path / "said")
        journal = found.project.folder / "data/sets/pixels/journal.part.jsonl"
        wait_for(lambda: journal.exists() and len(journal.read_bytes().splitlines()) > 12)
        run.kill()
        kill_all_at_work(found.project.folder)
        assert not (found.project.folder / MANIFEST).exists()
        rows = [json.loads(line) for line in journal.read_text("utf-8").splitlines()[1:] if line.endswith("}")]
        done = {row["url"] for row in rows}
        assert 10 < len(done) < 50
        began = found.fetched()
        found.project.snakemake(MANIFEST)
        repeated = {url for url, times in (found.fetched() - began).items() if url in done}
    assert not repeated
    assert found.pictures() == straight.pictures()
    assert found.project.read(MANIFEST) == straight.project.read(MANIFEST)
