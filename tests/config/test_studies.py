"""`studies.yaml`: two versions a claim, and every mistake told where it is made."""

from pathlib import Path

import pytest
from helpers import ROOT, SMALL

from sdlora.config.load import load
from sdlora.config.params import Params, StudiedParams
from sdlora.errors import ParamsError
from sdlora.flow import command, plan
from sdlora.stages.studies.recipe import StudiesRecipe, compared_of

MINE = """
seeds: 2
start:
  train: {rank: 2}
  fit: {method: pad}
claims:
  rank:
    says: more is better
    source: nobody
    change: {train: {rank: 4}}
    better: [psnr_db]
  padding:
    says: nothing is lost
    source: nobody
    start: {fit: {method: center_crop}}
    change: {fit: {method: pad}}
    same: [ssim]
  lora:
    says: it learns
    source: nobody
    against: base
    better: [psnr_db]
"""


def read(folder: Path, text: str = MINE, params: str = SMALL) -> Params:
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    (folder / "studies.yaml").write_text(text, encoding="utf-8")
    return load(folder / "params.yaml", studies=True)


def test_a_study_is_two_versions_and_the_start_is_trained_once(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert isinstance(found, StudiedParams)
    pairs = {one.name: (one.without, one.changed_to) for one in compared_of(found)}
    start = ("study-start", "study-start-seed43")
    assert pairs == {
        "rank": (start, ("study-rank", "study-rank-seed43")),
        "padding": (("study-padding-start", "study-padding-start-seed43"), start),
        "lora": ((), start),
    }
    versions = found.versions
    assert [versions[name].train.rank for name in ("study-start", "study-rank", "study-rank-seed43")] == [2, 4, 4]
    assert versions["study-rank-seed43"].train.seed == 43
    assert versions["study-padding-start"].fit.method == "center_crop"
    assert versions["study-rank"].train.steps == 4, "the defaults of params.yaml lie below"
    assert found.run == ("a", "b") and found.made == ["a", "b"], "nothing but `studies` makes them"
    only = load(tmp_path / "params.yaml")
    assert only.versions.keys() == {"a", "b"} and not isinstance(only, StudiedParams)
    (tmp_path / "studies.yaml").unlink()
    assert load(tmp_path / "params.yaml", studies=True) == only


def test_the_shipped_claims_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = load(Path("params.yaml"), studies=True)
    assert isinstance(found, StudiedParams) and found.studies.seeds >= 3
    asked = {"rank", "rate", "padding", "hires", "ema", "min-snr", "noise-offset", "pyramid", "prodigy", "again"}
    assert asked | {"caption-shuffling"} <= found.studies.claims.keys()
    for one in compared_of(found):
        version = found.versions[one.changed_to[0]]
        assert version.base == "tiny" and version.train.steps <= 400, "the embedded base, on a laptop"
    trainings = {str(job.identity()) + str(job.inputs) for job in plan.jobs(found) if job.stage == "train"}
    assert len(trainings) <= 20 * found.studies.seeds, "claims share what they start from, and `run` is among them"
    last = plan.jobs(found)[-1]
    assert isinstance(last, StudiesRecipe) and set(last.starts) == {one.starts_from for one in last.compared}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("    change: {train: {rank: 4}}", "    change: {train: {rnak: 4}}",
         ":10: claims.rank.change.train.rnak: unknown key; did you mean rank?"),
        ("train: {rank: 4}", "train: {rank: 0}", ":10: claims.rank.change.train.rank: 0 is not allowed"),
        ("  train: {rank: 2}", "  train: {rank: 0}", ":4: start.train.rank: 0 is not allowed"),
        ("  train: {rank: 2}", "  train: {rank: 2, checkpoint_every: 9}",
         ":4: start.train: checkpoint_every is 9 but steps is 4"),
        ("change: {train: {rank: 4}}", "change: {train: [4]}", "10: claims.rank.change.train: [4] is not allowed"),
        ("start: {fit: {method: center_crop}}", "start: {fit: {method: crop}}", "15: claims.padding.start.fit.method"),
        ("    against: base", "    against: bsae", "claims.lora.against: 'bsae' is not allowed"),
        ("    better: [psnr_db]", "    beter: [psnr_db]", "claims.rank.beter: unknown key; did you mean better?"),
        ("better: [psnr_db]", "better: [psnr]", "claims.rank.better: 'psnr' is not on the menu; did you mean psnr_db"),
        ("better: [psnr_db]", "better: [ms_ssim]", ":11: claims.rank.better: 'ms_ssim' is not measured: eval"),
        ("better: [psnr_db]", "better: []", "claims.rank: better and same are empty: name the"),
        ("better: [psnr_db]", "better: [psnr_db, psnr_db]", "the claim, in better and same, names 'psnr_db' twice"),
        ("better: [psnr_db]", "better: [psnr_db]\n    same: [psnr_db]", "in better and same, names 'psnr_db' twice"),
        ("seeds: 2", "seedz: 2", "seedz: unknown key; did you mean seeds?"),
        ("seeds: 2", "seeds: 1", "seeds: 1 is not allowed"),
        ("train: {rank: 4}", "train: {rank: 2}", ":10: claims.rank.change: it changes nothing of its start"),
        ("change: {train: {rank: 4}}", "change: {}", "claims.rank: change is empty"),
        ("train: {rank: 4}", "train: {seeds: 4}", "change states train.seeds, but no study states it"),
        ("start:\n  train: {rank: 2}", "start:\n  lora: x.safetensors", "start states lora, but no study states it"),
        ("change: {train: {rank: 4}}", "change: {sample: {report_seeds: [1]}}",
         "change states sample.report_seeds, but both sides of a comparison have it in common"),
        ("change: {train: {rank: 4}}", "change: {fit: {fill: blur}}", "change states fit.fill, but both sides of a"),
        ("  fit: {method: pad}\nc", "  dataset: smal\nc", "5: start.dataset: 'smal' is not defined; did you mean"),
        ("  rank:\n", "  start:\n", "two versions would be called study-start"),
    ],
)  # fmt: skip
def test_mistakes_name_place_value_and_choice(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in MINE
    with pytest.raises(ParamsError) as caught:
        read(tmp_path, MINE.replace(before, after, 1))
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "studies.yaml"))


def test_an_anchor_that_holds_itself_is_told_of_the_file_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=rf"^{tmp_path}/studies.yaml: an anchor holds an alias of itself$"):
        read(tmp_path, f"&all\nagain: *all{MINE}")


def test_a_version_of_the_same_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"claims.rank: params.yaml has a version study-rank already"):
        read(tmp_path, params=SMALL.replace("  b:\n", "  study-rank:\n").replace("[a, b]", "[a]"))


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["--cores", "2", "studies"], True),
        (["results/study-rank/metrics.csv"], True),
        (["--target-jobs", "train:version=study-rank-seed43"], True),  # what a cluster's job is told
        (["--target-jobs", "fit:dataset=captain,fit=bucket-edge-64"], True),
        (["--cores", "1", "results/v8/metrics.csv"], False),
        (["-n", "all"], False),
    ],
)
def test_studies_are_planned_where_they_are_asked_for(words: list[str], asked: bool) -> None:
    assert command.asks_for_studies(words) is asked
