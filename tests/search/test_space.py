"""What may be searched, and what is refused in a sentence before anything runs."""

from pathlib import Path
from typing import Any

import pytest
from helpers import SMALL

from sdlora import records
from sdlora.cli import main
from sdlora.config.load import load, section_of, stated, written_out
from sdlora.config.search import Study, Trials
from sdlora.errors import DataError, ParamsError
from sdlora.flow.identity import nested
from sdlora.search import page
from sdlora.search.journal import Journal, Outcome
from sdlora.search.run import Asked, Search
from sdlora.search.space import Range, Space, Values, space_of

ASKED = ("--like", "a", "--set", "train.rank=2,4")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings and nothing else: a search that got past them would fail otherwise."""
    larger = "  larger: {model: models/tiny-sd, family: sd, size_px: 96, captioner: models/tiny-blip}\ndatasets:"
    bare = "datasets:\n  bare: {sources: [{kind: folder, path: data/embedded/small}], trigger: captain, held_out: 0}\n"
    text = SMALL.replace("datasets:", larger).replace("datasets:\n", bare)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--like", "a"], "there is no searches/s/study.yaml yet: say --set KEY=VALUES"),
        (["--set", "train.rank=2,4"], "there is no searches/s/study.yaml yet: say --like VERSION"),
        (["--like", "c", "--set", "train.rank=2,4"], "params.yaml has no version 'c'; choices: a, b"),
        (["--like", "a", "--set", "train.rnak=2,4"], "train.rnak is no key of a version; did you mean train.rank?"),
        (["--like", "a", "--set", "learning_rat=2,4"], "is no key of a version; did you mean train.learning_rate?"),
        (["--like", "a", "--set", "rank=2,4"], "; did you mean train.rank or train.text_encoder.rank?"),
        (["--like", "a", "--set", "train.rank"], "--set train.rank: write KEY=VALUES"),
        ([*ASKED, "--set", "train.rank=8"], "--set train.rank=8: the key is set twice"),
        (["--like", "a", "--set", "train.rank="], "train.rank: the list of values is empty"),
        (["--like", "a", "--set", "train.rank=[2"], "train.rank: '[2' is no list of values; write 8,16,32"),
        (["--like", "a", "--set", "train.rank=2,2"], "train.rank: 2, 2 names a value twice"),
        (["--like", "a", "--set", "train.rank=2"], "nothing is searched: every key has one value"),
        (["--like", "a", "--set", "train.rank=4..2"], "train.rank: 4..2 is empty: 4 is not below 2"),
        (["--like", "a", "--set", "train.rank=1.5..4"], "train.rank: 1.5..4 has fractions, but the key takes whole"),
        (["--like", "a", "--set", "train.rank=2..8:lgo"], "2..8:lgo is no range; write 4..64, 1e-5..1e-3:log"),
        (["--like", "a", "--set", "train.dropout=0..0.5:log"], "begins at 0, which has no logarithm"),
        (["--like", "a", "--set", "train.optimizer=1..3"], "is a range, but the key takes no numbers; give a list"),
        (["--like", "a", "--set", "train.optimizer=adamw,adam"], "settings.train.optimizer: 'adam' is not on the menu"),
        (["--like", "a", "--set", "train=16,3"], "settings.train: 16 is not allowed: a section is wanted"),
        ([*ASKED, "--set", "evaluate={metrics: 3}"], "settings.evaluate.metrics: 3 is not allowed: a list is wanted"),
        ([*ASKED, "--set", "evaluate=3"], "settings.evaluate: 3 is not allowed: a section is wanted"),
        (["--like", "a", "--set", "train.rank=0..4"], "settings.train.rank: 0 is not allowed: input should be greater"),
        (["--like", "a", "--set", "train.seeds=1,2"], "train.seeds cannot be searched: a trial is trained once"),
        (["--like", "a", "--set", "evaluate.validation=0.3,0.5"], "cannot differ between trials: they would be"),
        (["--like", "a", "--set", "train.ema=null,{decay: 0.9}", "--set", "train.ema.decay=0.9"], "holds train.ema"),
        ([*ASKED, "--by", "ssmi"], "--by: there is no metric 'ssmi'; did you mean ssim?"),
        ([*ASKED, "--grid", "--set", "train.learning_rate=1e-4..1e-3"], "train.learning_rate: a grid takes lists"),
        ([*ASKED, "--prune-at", "3"], "prune_at: 3 is no checkpoint before a training's end; those are 2"),
        ([*ASKED, "--startup", "0"], "'0' is no number from 1 on"),
        ([*ASKED, "--seed", "-1"], "'-1' is no number from 0 on"),
        ([*ASKED, "--at-once", "20"], "--at-once is 20, but keep_runs is 20"),
        (["--like", "a", "--set", "sample.negative_prompt=2026-01-31,x"], "2026-01-31 is a date to YAML; as a text it"),
        (["--like", "a", "--set", "fit.fill=edge,blur"], "they would be measured against references padded otherwise"),
        (["--like", "a", "--set", "sample={seeds: [42]},{seeds: [43]}"], "sample.seeds cannot differ between trials"),
        (["--like", "a", "--set", "sample={max_references: 2},{}"], "give each sample the same, or none"),
        ([*ASKED, "--set", "dataset=bare"], "datasets.bare.held_out is 0: there is nothing to measure trials against"),
        (["--like", "a", "--set", "base=tiny,larger"], "fitted as pad-edge-64, pad-edge-96, for their bases"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["search", "s", *words])
    assert said in f"{stopped.value}{capsys.readouterr().err}"
    assert not [*folder.glob("searches/**/*")], "nothing is left behind"


@pytest.mark.workflow  # one of Snakemake's own imports starts a process
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--optino", "error: Snakemake's options: unrecognized arguments: --optino"),
        ("--cores none", "error: Snakemake's options: Error parsing number of cores (--cores, -c): must be integer"),
        ("--workflow-profile profiles/slrum", "--workflow-profile: there is no profiles/slrum"),
        ("-n", "behind --: -n: what comes next follows from what was measured"),
        ("--cores 1 -- results/a/metrics.csv", "behind --: results/a/metrics.csv: a search says itself what is made"),
        ("--touch", "--touch would call results fresh"),
    ],
)
def test_what_snakemake_would_refuse_is_told_before_a_study_is_written(folder: Path, words: str, said: str) -> None:
    (folder / "Snakefile").touch()
    with pytest.raises(SystemExit) as stopped:
        main(["search", "s", *ASKED, "--", *words.split()])
    assert said in str(stopped.value) and not [*folder.glob("searches/**/*")]


@pytest.mark.parametrize(
    ("begun", "said"),
    [(True, "trial 0: see logs/s-trial0/probe-4.log, or leave it out"), (False, "no trial was begun")],
)
def test_a_trial_is_blamed_for_what_its_own_job_did(
    folder: Path, monkeypatch: pytest.MonkeyPatch, begun: bool, said: str
) -> None:
    """Where Snakemake refuses to begin, as beside another run, there is no log; the command may be repeated."""

    def failing(*_: object) -> None:
        if begun:
            records.write_text(folder / "logs/s-trial0/probe-4.log", "")
        raise DataError("Snakemake ended with 1")

    monkeypatch.setattr("sdlora.search.batch.snakemake", failing)
    monkeypatch.setattr("sdlora.search.run.check_further", lambda _: None)
    for _ in range(2):
        with pytest.raises(SystemExit, match=f"error: Snakemake ended with 1; {said}.* The same command goes on"):
            main(["search", "s", *ASKED, "--set", "train.checkpoint_every=1", "--prune-at", "3,1"])


def test_a_search_that_is_stopped_says_the_whole_command() -> None:
    asked = Asked("s", {"like": "a"}, 8, 4, (), ("--default-resources", "slurm_partition='\"all\"'"))
    assert (
        asked.going_on
        == "sdlora search s --trials 8 --at-once 4 -- --default-resources 'slurm_partition='\"'\"'\"all\"'\"'\"''"
    )
    assert Asked("s", {}, None, 1, (0,), ()).going_on == "sdlora search s"


def test_ctrl_c_ends_as_that_of_any_command_and_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sdlora.search.batch.snakemake", interrupted)
    monkeypatch.setattr("sdlora.search.run.check_further", lambda _: None)
    with pytest.raises(SystemExit) as stopped:
        main(["search", "s", *ASKED, "--trials", "2"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; `sdlora search s --trials 2` goes on"


@pytest.mark.parametrize("name", ["../s", "", "a/b"])
def test_a_name_is_a_folders(folder: Path, name: str) -> None:
    with pytest.raises(SystemExit, match="is no name of a search: letters, digits"):
        main(["search", name, *ASKED])


def test_names_of_searches_differ_in_more_than_case(folder: Path) -> None:
    (folder / "searches/S").mkdir(parents=True)
    with pytest.raises(
        SystemExit, match="there is a search S, whose name differs in case alone: say S, or another name"
    ):
        main(["search", "s", *ASKED])


def test_a_study_that_is_there_is_not_searched_otherwise(folder: Path) -> None:
    """A person's own file, without the options that have defaults."""
    (folder / "searches/s").mkdir(parents=True)
    (folder / "searches/s/study.yaml").write_text("like: a\nsettings: {train.rank: [2, 4]}\n", encoding="utf-8")
    with pytest.raises(
        SystemExit, match=r"settings\.train\.rank was \"2, 4\" and is \"2, 8\"; a study stays what it was"
    ):
        main(["search", "s", "--set", "train.rank=2,8"])
    (folder / "searches/s/study.yaml").write_text("like: a\nsetings: {train.rank: [2, 4]}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"study\.yaml:2: setings: unknown key; did you mean settings\?"):
        main(["search", "s"])


@pytest.mark.parametrize(
    ("key", "written", "axis", "text"),
    [
        ("train.rank", "4..64", Range(4, 64, True), "4..64"),
        ("train.steps", "100..900:step=100", Range(100, 900, True, step=100), "100..900:step=100"),
        ("train.learning_rate", "1e-5..1e-3:log", Range(1e-5, 1e-3, False, log=True), "1e-05..0.001:log"),
        ("train.alpha", "1..4", Range(1.0, 4.0, False), "1.0..4.0"),
        ("sample.hires", "null,{factor: 1.5}", Values((None, {"factor": 1.5})), 'null, {"factor":1.5}'),
        ("train.noise", "[],[offset]", Values(((), ("offset",))), '[], ["offset"]'),
        ("train.rslora", "true,false", Values((True, False)), "true, false"),
        ("train.learning_rate", (1e-4, 1e-3), Values((1e-4, 1e-3)), "0.0001, 0.001"),
    ],
)  # fmt: skip
def test_values_are_read_as_they_are_written(key: str, written: Any, axis: Range | Values, text: str) -> None:
    space = space_of({key: written}, grid=False)
    assert space.axes == {key: axis} and space.texts == {key: text}
    assert space_of({key: text}, grid=False) == space, "and as they are written back"


def test_a_trial_is_a_version_beside_those_of_the_file(folder: Path) -> None:
    trials = Trials(like="a", by="ssim", prune_at=(2,), trials={"s-trial0": nested({"train.rank": 8})})
    (folder / "searches/s").mkdir(parents=True)
    text = "like: a\nby: ssim\nprune_at: [2]\ntrials:\n  s-trial0: {train: {rank: 8}}\n"
    (folder / "searches/s/trials.yaml").write_text(text, encoding="utf-8")
    params = load(folder / "params.yaml")
    trial = params.versions["s-trial0"]
    assert (trial.train.rank, trial.train.learning_rate, trial.evaluate.choose_by) == (8, 1e-3, ("ssim",))
    assert params.made == ["a", "b"], "`all` does not make it"

    best = written_out(stated(folder / "params.yaml"), trials, "s-trial0")
    assert best["train"]["seeds"] == 3
    (folder / "searches/s/trials.yaml").write_text(text.replace("8", "0"), encoding="utf-8")
    with pytest.raises(ParamsError, match=r"searches/s/trials\.yaml: s-trial0\.train\.rank: 0 is not allowed"):
        load(folder / "params.yaml")
    (folder / "searches/s/trials.yaml").write_text(text.replace("s-trial0", "b"), encoding="utf-8")
    with pytest.raises(ParamsError, match="there is a version 'b' already"):
        load(folder / "params.yaml")
    (folder / "searches/s/trials.yaml").write_text(text.replace("like: a", "like: aa"), encoding="utf-8")
    with pytest.raises(ParamsError, match=r"like is 'aa', which params.yaml does not have; did you mean a\?"):
        load(folder / "params.yaml")


def test_one_value_in_a_file_is_the_same_for_all_trials(folder: Path) -> None:
    """As `--set sample.hires=null` is on the command line."""
    text = "like: a\nsettings: {train.rank: [2, 4], train.steps: 400, sample.hires: null, train.ema: {decay: 0.9}}\n"
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    space = space_of(section_of(folder / "study.yaml", Study).settings, grid=False)
    assert [*space.varied] == ["train.rank"]
    assert space.fixed == {"train.steps": 400, "sample.hires": None, "train.ema": {"decay": 0.9}}


SPACE = space_of({"train.rank": "2,4,8", "train.learning_rate": "1e-4..1e-2:log"}, grid=False)


def opened(folder: Path, space: Space = SPACE, **study: Any) -> Journal:
    asked = Study(like="a", settings=dict(space.texts), **{"startup": 2, "prune_at": (2,), **study})
    return Journal(folder / "searches/s", asked, space, maximise=False)


def test_what_is_proposed_depends_on_the_trials_before_and_on_no_process(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    proposed = []
    for number in range(8):
        proposed.append(journal.propose(number, number, []))
        assert opened(tmp_path).propose(number, number, []) == proposed[-1], "killed and started again"
        journal.tell(Outcome(number, proposed[-1], proposed[-1]["train.learning_rate"], on_the_way={2: 1.0}))
    assert len({tuple(one.values()) for one in proposed}) == 8
    assert [one.params for one in opened(tmp_path).told] == proposed
    late = [one["train.learning_rate"] for one in proposed[5:]]
    assert max(late) < max(one["train.learning_rate"] for one in proposed[:5]), "it has learnt where low values lie"
    assert opened(tmp_path, seed=43).propose(0, 0, []) != proposed[0]


def test_trials_of_a_batch_know_each_other_and_not_what_came_of_them(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    first = journal.propose(0, 0, [])
    second = journal.propose(1, 0, [first])
    journal.tell(Outcome(0, first, 1.0))
    assert journal.propose(1, 0, [first]) == second


@pytest.mark.parametrize("cut", [b"", bytes(60)], ids=["a kill", "a power cut"])
def test_what_ends_the_journal_in_a_line_loses_that_line_alone(tmp_path: Path, cut: bytes) -> None:
    journal = opened(tmp_path)
    for number, value in enumerate((2.0, 1.0)):
        journal.tell(Outcome(number, journal.propose(number, number, []), value))
    path = tmp_path / "searches/s/journal.log"
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:40] + cut)
    path.with_name("journal.log.lock").symlink_to(path)
    again = opened(tmp_path)
    assert [one.value for one in again.told] == [2.0, 1.0]
    again.tell(Outcome(2, again.propose(2, 2, []), 3.0))
    assert [one.value for one in opened(tmp_path).told] == [2.0, 1.0, 3.0]


def test_a_value_of_nothing_is_drawn() -> None:
    told = [Outcome(0, {}, 0.0, base=-1.0), Outcome(1, {}, -2.0, base=-1.0)]
    assert page._ends(told, maximise=True) == (-2.0, 0.0), "a dot at 0 lies in the drawing"


def test_a_burnt_trial_does_not_hide_the_others() -> None:
    """On the bad side alone: the best trial is always drawn."""
    values = [0.29, 0.3, 0.31, 0.295, 0.305, 1.6]
    told = [Outcome(number, {}, value) for number, value in enumerate(values)]
    assert page._ends(told, maximise=False) == (0.29, 0.31)
    assert page._ends(told, maximise=True) == (0.29, 1.6)
    assert page._height(1.6, 0.29, 0.31) == page._height(0.31, 0.29, 0.31) == page.EDGE / 2


def test_a_trial_is_hopeless_if_it_is_worse_than_the_median_of_those_that_finished(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    params = journal.propose(0, 0, [])
    for number, value in enumerate((1.0, 2.0)):
        assert not journal.can_give_up(number)
        journal.tell(Outcome(number, params, value, on_the_way={2: value}))
    assert journal.can_give_up(2) and not journal.can_give_up(1)
    assert [journal.is_hopeless(2, params, {2: value}) for value in (1.4, 1.6)] == [False, True]
    journal.tell(Outcome(2, params, None, on_the_way={2: 9.0}, why="given up at step 2"))
    assert journal.is_hopeless(3, params, {2: 1.6}), "one that was given up moves no median"
    best = journal.best()
    assert best is not None and best.number == 0 and journal.importances() == {}


def test_a_trial_that_collapsed_is_hopeless_unless_it_has_a_good_checkpoint(tmp_path: Path) -> None:
    """Optuna's own pruner takes a trial's best checkpoint so far, which tells nothing of a collapse."""
    journal = opened(tmp_path, prune_at=(2, 4))
    params = journal.propose(0, 0, [])
    for number, value in enumerate((1.0, 2.0)):
        journal.tell(Outcome(number, params, value, on_the_way={2: 5.0, 4: 2.0 + value}))
    assert journal.is_hopeless(2, params, {2: 2.0, 4: 9.0}), "at 4 it is worse than 3.5"
    assert not journal.is_hopeless(2, params, {2: 1.2, 4: 9.0}), "it would come to 1.2, and half of them to 1.5 or more"
    assert not journal.is_hopeless(2, params, {2: 9.0, 4: 2.0}), "it came late"


def test_no_trial_of_a_finished_search_can_be_left_out(folder: Path) -> None:
    journal = opened(folder)
    study = Study(like="a", settings=dict(SPACE.texts), by="ssim", prune_at=(2,))
    search = Search("s", study, SPACE, stated(folder / "params.yaml"), load(folder / "params.yaml"))
    search.journal, search.known = journal, search.trials({})
    journal.tell(Outcome(0, journal.propose(0, 0, []), 1.0))
    with pytest.raises(ParamsError, match="--leave-out: all 1 trials of s have come to their end"):
        search.make(Asked("s", {}, 1, 1, (0,), ()))


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    space = space_of({"train.rank": "2,4,8", "sample.hires": "null,{factor: 1.5}"}, grid=True)
    journal = opened(tmp_path, space, grid=True)
    for number in range(space.combinations):
        journal.tell(Outcome(number, journal.propose(number, number, []), float(number)))
    tried = [(one.params["train.rank"], one.params["sample.hires"]) for one in journal.told]
    assert len(tried) == 6 and all((rank, hires) in tried for rank in (2, 4, 8) for hires in (None, {"factor": 1.5}))


def test_no_trial_repeats_another_while_there_are_others(tmp_path: Path) -> None:
    """Optuna's TPE proposes the best settings again and again."""
    lists = space_of({"train.rank": "2,4,8", "train.alpha": "1,2,4"}, grid=False)
    journal = opened(tmp_path, lists)
    for number in range(9):
        tried = journal.propose(number, number, [])
        journal.tell(Outcome(number, tried, float(tried["train.rank"] + tried["train.alpha"])))
    assert sorted((one.params["train.rank"], one.params["train.alpha"]) for one in journal.told) == [
        (rank, alpha) for rank in (2, 4, 8) for alpha in (1, 2, 4)
    ]
    assert journal.propose(9, 9, []) in [one.params for one in journal.told], "there is no other"
    assert SPACE.combinations is None and [*SPACE.every()] == []


@pytest.mark.parametrize("text", ["2..5", "2..8:step=2"])
def test_numbers_one_by_one_are_all_tried_before_one_is_repeated(tmp_path: Path, text: str) -> None:
    space = space_of({"train.rank": text, "train.learning_rate": "1e-4..3e-4:step=1e-4"}, grid=False)
    journal = opened(tmp_path, space)
    for number in range(12):
        tried = journal.propose(number, number, [])
        journal.tell(Outcome(number, tried, float(tried["train.rank"])))
    assert len({(*one.params.values(),) for one in journal.told}) == space.combinations == 12


def test_a_trial_left_out_by_hand_may_be_tried_again(tmp_path: Path) -> None:
    space = space_of({"train.rank": "2,4"}, grid=False)
    journal = opened(tmp_path, space)
    journal.tell(Outcome(0, {"train.rank": 2}, None, why="left out by hand"))
    journal.tell(Outcome(1, {"train.rank": 4}, 1.0))
    assert journal.propose(2, 2, []) == {"train.rank": 2}, "what failed was not the setting"


def test_importance_is_found_where_it_was_put(tmp_path: Path) -> None:
    journal = opened(tmp_path, startup=30)
    for number in range(30):
        params = journal.propose(number, number, [])
        journal.tell(Outcome(number, params, params["train.learning_rate"]))
    found = journal.importances()
    assert found["train.learning_rate"] > 0.8 and sum(found.values()) == pytest.approx(1)
