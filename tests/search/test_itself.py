"""A search begins with the version that its trials are like."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import SMALL

from sdlora import records
from sdlora.cli import main
from sdlora.config.load import load
from sdlora.config.search import Study
from sdlora.errors import DataError
from sdlora.flow import freshness, plan
from sdlora.search.itself import Itself
from sdlora.search.journal import LEFT_OUT, Journal, Outcome
from sdlora.search.run import Asked, Search
from sdlora.search.space import Space, space_of
from sdlora.stages.train.recipe import TrainRecipe

PARAMS = SMALL.replace("captioner: models/tiny-blip}", "captioner: models/tiny-blip, defaults: {train: {alpha: 3.0}}}")
PARAMS = (
    PARAMS.replace("presets: {}", "presets:\n  p: {train: {dropout: 0.1}}")
    + "    preset: p\n  c: {train: {rank: 2, alpha: null}}\n"
)
SEARCH = ("search", "s", "--like", "a", "--by", "psnr_db", "--set", "train.rank=2,4,8")
Measured = Callable[[Callable[[int], float]], None]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings and nothing else."""
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Says what trials come to, by their rank, in the place of trainings."""

    def come_to(value: Callable[[int], float]) -> None:
        def make(targets: Sequence[str], _: Sequence[str]) -> None:
            for target in targets:
                name = Path(target).parts[1]
                found = value(load(folder / "params.yaml").versions[name].train.rank)
                values = {"0": 0.0, "2": found, "4": found}
                records.write_json(Path(target), {"diverged": None, "run": None, "chosen": 4, "values": values})

        monkeypatch.setattr("sdlora.search.batch.snakemake", make)
        monkeypatch.setattr("sdlora.search.run.snakemake", make)
        monkeypatch.setattr("sdlora.search.run.check_further", lambda _: None)

    return come_to


@pytest.mark.parametrize(
    ("like", "settings", "params", "why_not"),
    [
        ("a", {"train.rank": "2,4"}, {"train.rank": 2}, ""),
        ("a", {"train.rank": "2..4"}, {"train.rank": 2}, ""),
        ("a", {"train.rank": "2..8:step=3"}, {"train.rank": 2}, ""),
        ("a", {"train.rank": "1..9:step=2"}, None, "a's train.rank 2 is not in 1..9:step=2"),
        ("a", {"train.rank": "4,8"}, None, "a's train.rank 2 is not among 4, 8"),
        ("a", {"train.learning_rate": "1e-4..1e-2:log"}, {"train.learning_rate": 1e-3}, ""),
        ("a", {"train.learning_rate": "2e-4..1e-2:step=2e-4"}, {"train.learning_rate": 1e-3}, ""),
        ("a", {"train.alpha": "1,3"}, {"train.alpha": 3}, ""),  # of the base's defaults
        ("c", {"train.alpha": "1,2"}, {"train.alpha": 2}, ""),  # null means the rank
        ("c", {"train.alpha": "1..4", "train.rank": "2,4"}, {"train.alpha": 2.0, "train.rank": 2}, ""),
        ("b", {"train.dropout": "0,0.1"}, {"train.dropout": 0.1}, ""),  # of its preset
        ("b", {"preset": "null,p"}, {"preset": "p"}, ""),
        ("a", {"sample.hires": "null,{factor: 1.5}"}, {"sample.hires": {"factor": 1.5}}, ""),
        ("a", {"train.ema.decay": "0.9..0.99"}, None, "a's train.ema.decay null is not in 0.9..0.99"),
        ("a", {"train.rank": "4,8", "train.learning_rate": "1e-5..1e-4"}, None,
         "a's train.learning_rate 0.001 is not in 1e-05..0.0001 and train.rank 2 is not among 4, 8"),
    ],
)  # fmt: skip
def test_what_a_version_has_is_among_what_is_searched(
    folder: Path, like: str, settings: dict[str, str], params: dict[str, Any] | None, why_not: str
) -> None:
    found = Search.of(Asked("s", {"like": like, "by": "psnr_db", "settings": settings}, None, 1, (), ())).itself
    assert (found.params, found.why_not) == (params, why_not)


@pytest.mark.parametrize("grid", [False, True])
def test_the_first_trial_is_the_version_and_no_other_repeats_it(tmp_path: Path, grid: bool) -> None:
    lists = space_of({"train.rank": "2,4,8", "train.alpha": "1,2"}, grid)
    own = {"train.alpha": 2, "train.rank": 4}
    alone: list[dict[str, Any]] = []
    together: list[dict[str, Any]] = []
    for number in range(6):
        journal = opened(tmp_path / "alone", lists, own, grid)  # killed before each
        alone.append(journal.propose(number, number, []))
        journal.tell(Outcome(number, alone[-1], float(-sum(alone[-1].values()))))
        together.append(opened(tmp_path / "together", lists, own, grid).propose(number, 0, together))
    for tried in (alone, together):
        assert tried[0] == own and len({tuple(one.values()) for one in tried}) == 6


def test_a_grid_tries_each_combination_before_one_that_was_left_out_again(tmp_path: Path) -> None:
    lists = space_of({"train.rank": "2,4", "train.alpha": "1,2"}, grid=True)
    own = {"train.alpha": 2, "train.rank": 4}
    for left_out in (1, 2):
        journal = opened(tmp_path / f"{left_out}", lists, own, grid=True)
        tried: list[dict[str, Any]] = []
        for number in range(4):
            tried.append(journal.propose(number, number, []))
            why = LEFT_OUT if number == left_out else ""
            journal.tell(Outcome(number, tried[-1], None if why else 1.0, why=why))
        assert len({tuple(one.values()) for one in tried}) == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("presets:", "presets: [", "params.yaml:"),
        ("  c: {train:", "  c: {trian:", "versions.c.trian: unknown key; did you mean train?"),
        (
            "rank: 2, alpha: null",
            "rank: 5, alpha: null",
            "version.train.rank was 2 and is 5; set that back, and the same",
        ),
        ("threads: 1", "threads: 2", "threads was 1 and is 2; set that back, and the same command goes on"),
        ("held_out: references", "held_out: 2", 'datasets.small.held_out was "references" and is 2'),
    ],
)
def test_settings_that_change_while_a_search_runs_stop_it_and_cost_no_trial(
    folder: Path, measured: Measured, old: str, new: str, said: str
) -> None:
    """They are no trial's fault, and trials before and after could not be compared."""
    path = folder / "params.yaml"
    text = path.read_text("utf-8")
    assert text.count(old) == 1

    def edited(rank: int) -> float:
        path.write_text(text.replace(old, new), encoding="utf-8")
        return float(rank)

    measured(edited)
    words = ["search", "s", "--like", "c", "--by", "psnr_db", "--set", "train.learning_rate=1e-4,1e-3,1e-2"]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert said in str(stopped.value)
    path.write_text(text, encoding="utf-8")
    measured(float)
    main(words)
    rows = records.read_csv(folder / "results/searches/s/trials.csv")
    assert [row["psnr_db"] for row in rows] == ["2", "2", "2"]


@pytest.mark.parametrize("gone", [False, True], ids=["there", "gone"])
def test_trials_of_other_pictures_are_not_told(folder: Path, monkeypatch: pytest.MonkeyPatch, gone: bool) -> None:
    """What pictures have become shows only in what Snakemake makes of them; records may be gone before, too."""
    pictures = ["old"]

    def make(targets: Sequence[str], _: Sequence[str]) -> None:
        jobs = {str(job.folder): job for job in plan.jobs(load(folder / "params.yaml"))}
        for target in targets:
            values = {"0": 0.0, "2": 1.0, "4": 1.0}
            records.write_json(Path(target), {"diverged": None, "run": None, "chosen": 4, "values": values})
            job = jobs[str(Path(target).parent)]
            for before in job.inputs:
                records.write_json(before, {"recipe": "", "inputs": {}, "outputs": {"a": pictures[0]}})
            freshness.write_made(job, [Path(target)])

    monkeypatch.setattr("sdlora.search.batch.snakemake", make)
    monkeypatch.setattr("sdlora.search.run.snakemake", lambda *_: None)
    monkeypatch.setattr("sdlora.search.run.check_further", lambda _: None)
    main([*SEARCH, "--trials", "1"])
    pictures[0] = "new"
    if gone:
        shutil.rmtree(folder / "data")
    with pytest.raises(SystemExit, match=r"since trial 0 of s was measured, .*; trials from here on could not be"):
        main([*SEARCH, "--trials", "2"])
    pictures[0] = "old"
    shutil.rmtree(folder / "data")
    main([*SEARCH, "--trials", "2"])
    assert len(records.read_csv(folder / "results/searches/s/trials.csv")) == 2


def opened(folder: Path, space: Space, first: dict[str, Any] | None, grid: bool = False) -> Journal:
    return Journal(folder / "s", Study(like="a", settings=dict(space.texts), grid=grid), space, False, first)


def test_a_number_of_a_person_is_kept_with_all_its_digits(tmp_path: Path) -> None:
    """A trial's own has four, and the version's training would be another one."""
    space = space_of({"train.learning_rate": "1e-4..1e-2:log"}, grid=False)
    own = {"train.learning_rate": 0.00123456789}
    journal = opened(tmp_path, space, own)
    journal.tell(Outcome(0, journal.propose(0, 0, []), 1.0))
    assert opened(tmp_path, space, own).told[0].params == own


def test_a_search_begins_with_its_version_whose_training_it_takes(
    folder: Path, measured: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(float)
    main([*SEARCH, "--trials", "2"])
    assert "\ntrial 0 of 2 (a itself): train.rank 2: psnr_db 2 at step 4" in f"\n{capsys.readouterr().out}"
    trained = {job.wildcards["version"]: job for job in plan.jobs(load(folder / "params.yaml")) if is_training(job)}
    ours, its = trained["s-trial0"], trained["a"]
    assert (
        (ours.identity(), ours.inputs) == (its.identity(), its.inputs) != (trained["s-trial1"].identity(), its.inputs)
    )
    html = (folder / "results/searches/s/index.html").read_text("utf-8")
    assert '<td data-sort="0">0 (a itself)</td>' in html and "Ringed: a itself." in html
    assert html.count("<title>trial 0 (a itself): train.rank 2: 2</title>") == 2 and "s-best:" in html


def is_training(job: object) -> bool:
    return isinstance(job, TrainRecipe)


def test_nothing_is_to_be_changed_where_no_trial_is_better(
    folder: Path, measured: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(lambda rank: 1 / rank)
    main([*SEARCH[:-1], "train.rank=2,4,8,16", "--set", "train.alpha=3,6", "--grid"])
    page = (folder / "results/searches/s/index.html").read_text("utf-8")
    shares = dict(re.findall(r'<th scope="row">([^<]+)</th><td>(\d+) %</td>', page))
    assert int(shares["train.rank"]) > 60 and {*shares} == {"train.rank", "train.alpha"}, "importance"
    said = capsys.readouterr().out
    assert "It is a itself: no trial is better, and params.yaml may stay as it is." in said and "s-best" not in said
    tried = [row["train.rank"] for row in records.read_csv(folder / "results/searches/s/trials.csv")]
    assert sorted(tried) == sorted([*"248", "16"] * 2)


def test_what_all_trials_have_otherwise_is_named(
    folder: Path, measured: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(lambda rank: 1 / rank)
    main([*SEARCH, "--set", "train.steps=6", "--set", "train.learning_rate=1e-3", "--trials", "1"])
    said = capsys.readouterr().out
    assert "trial 0 of 1 (a but for train.steps): train.rank 2" in said and "s-best:" in said


@pytest.mark.parametrize(
    ("option", "begins"), [("--trials=1", "the first trial is random"), ("--grid", "no trial is a")]
)
def test_a_version_that_lies_outside_is_told_once(
    folder: Path, measured: Measured, option: str, begins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(float)
    main([*SEARCH[:-1], "train.rank=4,8", option])
    said = capsys.readouterr()
    assert f"note: a's train.rank 2 is not among 4, 8: {begins}" in said.err and "itself" not in said.out
    main(["search", "s", "--trials", "2"])
    assert "note: a's" not in capsys.readouterr().err


@pytest.mark.parametrize("told", [False, True], ids=["asked", "told"])
def test_a_study_that_began_with_another_trial_goes_on(
    folder: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    def failing(*_: object) -> None:
        raise DataError("Snakemake ended with 1")

    measured(float)
    with monkeypatch.context() as before:
        before.setattr("sdlora.search.run.itself", lambda _: Itself("a", None, "", ()))
        if told:
            main([*SEARCH, "--trials", "1", "--seed", "1"])
        else:
            before.setattr("sdlora.search.batch.snakemake", failing)
            with pytest.raises(SystemExit, match="ended with 1"):
                main([*SEARCH, "--seed", "1"])
    first = load(folder / "params.yaml").versions["s-trial0"].train.rank
    assert first != 2, "a random one"
    main(["search", "s", "--trials", "3"])
    ranks = [int(row["train.rank"]) for row in records.read_csv(folder / "results/searches/s/trials.csv")]
    assert ranks[0] == first and sorted(ranks) == [2, 4, 8]
