"""What a user types and gets wrong, through Snakemake's own door: a sentence, and nothing lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SMALL, Project, make_project

from sdlora import records
from sdlora.config.load import load
from sdlora.config.params import Fit
from sdlora.errors import DataError, ParamsError
from sdlora.flow import command, freshness, plan
from sdlora.stages.fit.recipe import FitRecipe


@pytest.fixture(scope="module")
def project(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which nothing has run; tests put back what they change."""
    return make_project(tmp_path_factory.mktemp("a b") / "project", python=served)


def edited(project: Project, before: str, after: str) -> None:
    assert before in SMALL
    (project.folder / "params.yaml").write_text(SMALL.replace(before, after, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "after", "target", "message"),
    [
        ("", "", "results/aa/metrics.csv", "error: params.yaml has no version 'aa'; did you mean a?"),
        ("", "", "results/v8/report/index.html", "error: params.yaml has no version 'v8'; choices: a, b"),
        ("", "", "results/compare/a-vs-bb.html", "error: params.yaml has no version 'bb'; did you mean b?"),
        ("", "", "data/sets/small/pad-edge-32/fit.jsonl",
         "error: no version of params.yaml makes data/sets/small/pad-edge-32/made/fit.json; did you mean "
         "data/sets/small/pad-edge-64/made/fit.json?"),
        ("  b:\n", "  compare:\n", "all", "a version cannot be called compare: results/compare is where comparisons"),
        ("  b:\n", "  base:\n", "all", "a version cannot be called base: results/base is where the embedded base"),
        ("    held_out: references\n", "", "results/a/metrics.csv",
         "datasets.small.held_out is 0, so version a has no references to be measured against"),
        ("held_out: references", "held_out: caf\N{LATIN SMALL LETTER E WITH ACUTE}", "results/a/metrics.csv", ""),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_any_work(
    project: Project, before: str, after: str, target: str, message: str
) -> None:
    edited(project, before, after)
    text = project.snakemake("-n", target, check=not message)
    assert message in text and "Traceback" not in text
    assert message or "This was a dry-run" in text


def test_pictures_that_only_a_version_outside_run_wants_are_missed_before_any_work(project: Project) -> None:
    """Of what is asked for, the version that has its pictures is not begun."""
    gone = "  gone: {sources: [{kind: folder, path: data/gone}], trigger: x, held_out: 2}\ndefaults:"
    text = SMALL.replace("defaults:", gone).replace("run: [a, b]", "run: [a]")
    text = text.replace("  b:\n", "  b:\n    dataset: gone\n")
    (project.folder / "params.yaml").write_text(text, encoding="utf-8")
    said = project.snakemake("results/a/metrics.csv", "results/b/metrics.csv", check=False)
    assert "error: datasets.gone.sources[0].path: there is no folder 'data/gone'" in said and "Traceback" not in said
    assert not (project.folder / "data/sets").exists()
    assert "train" in project.plan("results/a/metrics.csv"), "which does not need them"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
@pytest.mark.parametrize(
    ("before", "after", "target", "said"),
    [
        ("size_px: 64,", "size_px: 64, dtype: fp16,", "metrics.csv", "mixed_precision fp16 needs a GPU; on a CPU"),
        ("rank: 2", "rank: 2, mixed_precision: fp16", "metrics.csv", "mixed_precision fp16 needs a GPU; on a CPU"),
        ("rank: 2", "rank: 2, deterministic: false", "metrics.csv", "deterministic: false needs a GPU; on a CPU"),
        ("{rank: 2}", "{rank: 2}\n    animate: {}", "animation.gif", "animate.dtype is fp16, which needs a GPU; on"),
        ("rank: 2", "rank: 2, timestep_shift: 2.0", "metrics.csv", "train.timestep_shift belongs to flow_matching"),
        ("factor: 1.5, denoising_strength: 0.35}", "factor: 1.5}, second_prompt: x", "metrics.csv",
         "sample.second_prompt is for families with a second text encoder"),
    ],
)  # fmt: skip
def test_what_this_machine_or_base_cannot_do_is_told_before_any_work(
    project: Project, before: str, after: str, target: str, said: str
) -> None:
    edited(project, before, after)
    text = project.snakemake("--cores", "1", f"results/a/{target}", check=False)
    assert f"error: version a: {said}" in text and "Traceback" not in text
    assert not (project.folder / "data/sets").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_only_what_must_be_trained_here_is_refused(project: Project) -> None:
    edited(project, "rank: 2", "rank: 2, mixed_precision: fp16")
    assert project.plan("data/sets/small/pad-edge-64/captions.jsonl") == {"scrape", "fit", "caption"}
    assert "train" in project.plan("results/b/metrics.csv"), "another version may run"
    elsewhere = project.snakemake("-n", "--executor", "cluster-generic", "results/a/metrics.csv", check=False)
    assert "needs a GPU" not in elsewhere, "nothing is known of other machines"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_what_a_gpu_trained_elsewhere_is_taken_as_it_is(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    built.edit("params.yaml", "rank: 2", "rank: 2, mixed_precision: fp16")
    assert "fp16 needs a GPU" in built.snakemake("-n", "results/a/train_log.csv", check=False)
    monkeypatch.chdir(built.folder)
    (train,) = (job for job in plan.jobs(load(Path("params.yaml"))) if (job.stage, job.name) == ("train", "a"))
    made = freshness.read_made(train.made)
    assert made is not None
    freshness.write_made(train, map(Path, made.outputs))
    assert "Nothing to be done" in built.snakemake("-n", "results/a/train_log.csv")


STUDIES = """
seeds: 2
start: {train: {rank: 2}}
claims:
  rank: {says: more is better, source: nobody, change: {train: {rank: 8}}, better: [psnr_db]}
"""


def test_studies_are_made_where_they_are_asked_for(project: Project) -> None:
    edited(project, "", "")
    told = project.snakemake("-n", "studies", check=False)
    assert "error: there is no studies.yaml beside params.yaml" in told and "Traceback" not in told
    (project.folder / "studies.yaml").write_text(STUDIES, encoding="utf-8")
    planned = project.plan_list("studies")
    counts = {rule: planned.count(rule) for rule in ("train", "sample", "evaluate", "report", "studies")}
    assert counts == {"train": 4, "sample": 4, "evaluate": 4, "report": 0, "studies": 1}
    assert project.plan_list("results/study-rank-seed43/train_log.csv").count("train") == 1
    assert project.plan_list("all").count("train") == 2, "of a and b"
    (project.folder / "studies.yaml").unlink()


def test_a_comparison_is_made_anew_after_an_update_of_its_code(project: Project) -> None:
    """Nothing else is to be made: its versions are not planned."""
    edited(project, "", "")
    words, results = (
        ("-n", "--allowed-rules", "compare", "--", "results/compare/a-vs-b.html"),
        project.folder / "results",
    )
    for name in "ab":
        records.write_json(results / name / "made/evaluate.json", {})
    assert "rule compare:" in project.snakemake(*words)
    for ending in ("csv", "html"):
        records.write_text(results / f"compare/a-vs-b.{ending}", "-")
    assert "Nothing to be done" in project.snakemake(*words)
    change = ("src/sdlora/stages/evaluate/statistics.py", "min(1.0, (len", "min(2.0, (len")
    project.edit(*change)
    assert "rule compare:" in project.snakemake(*words)
    project.edit(change[0], change[2], change[1])
    shutil.rmtree(results)


def test_settings_on_the_command_line_are_refused(project: Project) -> None:
    edited(project, "", "")
    text = project.snakemake("-n", "--config", "base=sd15", check=False)
    assert "--config and --configfile are not read (base): edit params.yaml" in text


def test_a_training_needs_no_references(project: Project) -> None:
    edited(project, "    held_out: references\n", "")
    assert "train" in project.plan("results/a/train_log.csv")


def test_what_a_deleted_version_left_is_not_called_up_to_date(project: Project) -> None:
    edited(project, "", "")
    records.write_text(project.folder / "results/gone/metrics.csv", "step\n")
    assert "no version 'gone'" in project.snakemake("results/gone/metrics.csv", check=False)
    assert project.read("results/gone/metrics.csv") == b"step\n", "and stays where it is"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SMALL.encode("utf-16"), "params.yaml:1: byte 0xff is not UTF-8"),
        (SMALL.replace("trigger: captain", "trigger: caf\xe9").encode("latin-1"), "params.yaml:12: byte 0xe9 is not"),
        (b"a: " + b"[" * 3000, "params.yaml: nested too deeply"),
        (b"a: &one {<<: *one}", "params.yaml: a merge key (<<) names what is not a finished mapping"),
        (b"a: &a [*a, *a]", "is missing"),
        ("\n".join([f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else '1'}]" for n in range(12)]).encode(),
         "params.yaml: its anchors unfold to more than 200,000 values"),
    ],
    ids=["UTF-16", "Latin-1", "deep", "merges itself", "of itself", "bomb"],
)  # fmt: skip
def test_a_hostile_params_file_is_told(project: Project, content: bytes, message: str) -> None:
    (project.folder / "params.yaml").write_bytes(content)
    text = project.snakemake("-n", check=False)
    assert message in text and "Traceback" not in text


def test_snakemake_from_another_folder_is_told(project: Project, tmp_path: Path) -> None:
    edited(project, "", "")
    elsewhere = Project(tmp_path, project.python)
    text = elsewhere.snakemake("-n", "-s", str(project.folder / "Snakefile"), check=False)
    assert "Snakemake runs in" in text and f"say `cd '{project.folder}'`" in text and "Traceback" not in text
    text = project.snakemake("-n", "--directory", str(tmp_path), check=False)
    assert f"Snakemake runs in {tmp_path}, but the pipeline lies in {project.folder}" in text
    assert "copy the project for a second workspace" in text and "Traceback" not in text and not [*tmp_path.iterdir()]


def test_the_code_that_was_hashed_runs_and_paths_may_have_spaces(project: Project, tmp_path: Path) -> None:
    """With another sdlora installed, from a virtual environment below `a b/`."""
    edited(project, "", "")
    environment_folder = tmp_path / "virtual env"
    (environment_folder / "bin").mkdir(parents=True)
    python = environment_folder / "bin/python"
    python.symlink_to(Path(sys.executable).resolve())
    (environment_folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", environment_folder)
    project.edit("src/sdlora/stages/fit/fit.py", 'print(f"fit:', 'print(f"the code of this checkout, fit:')
    target = "data/sets/small/pad-edge-64/fit.jsonl"
    done = project.command(
        "env", "-u", "PYTHONPATH", str(python), "-m", "snakemake", "--cores", "1", target, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the code of this checkout, fit: 6 new" in done.stdout + done.stderr


def test_other_code_than_the_planned_is_refused(project: Project) -> None:
    edited(project, "", "")
    project.snakemake("-n", "data/sets/small/manifest.jsonl")
    recipe = project.folder / ".sdlora/recipes/scrape/small.json"
    records.write_json(recipe, {**records.read_json(recipe), "code": "0" * 16})
    words = ("workflow/scripts/scrape.py", "--recipe", str(recipe), "--again", "0")
    shutil.rmtree(project.folder / "data/sets", ignore_errors=True)
    text = project.command(sys.executable, *words, check=False).stderr
    assert "is not the code that this run was planned with" in text and "Traceback" not in text
    assert not (project.folder / "data/sets").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"wildcards": {}, "fit": {"method": "squeeze"}}'])
def test_a_recipe_that_is_none_is_told(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.json").write_text(content)
    monkeypatch.setattr(sys, "argv", ["fit.py", "--recipe", str(tmp_path / "recipe.json")])
    with pytest.raises(SystemExit, match=r"recipe.json: no recipe of the stage fit"):
        command.run(FitRecipe, lambda _: [])


def test_a_project_that_cannot_be_written_is_told(fresh: Project) -> None:
    (fresh.folder / ".sdlora").write_text("a file in the place of the folder")
    text = fresh.snakemake("-n", check=False)
    assert ".sdlora" in text and "writable" in text and "Traceback" not in text


@pytest.mark.parametrize("number", [28, 122, 13, 30])
def test_what_is_wrong_with_the_machine_is_a_sentence(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = asked(tmp_path, monkeypatch)

    def work(*_: object) -> list[Path]:
        raise OSError(number, os.strerror(number), "samples/1.png")

    with pytest.raises(SystemExit, match=rf"error: samples/1\.png: {os.strerror(number)}; what was finished is kept"):
        command.run(FitRecipe, work)
    assert not recipe.made.exists()


def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FitRecipe:
    """A recipe that a script finds on its command line."""
    monkeypatch.chdir(folder)
    recipe = FitRecipe(wildcards={"dataset": "d", "fit": "pad-64"}, fit=Fit(size_px=64), masks=None, mask_files=None)
    records.write_text(recipe.path, recipe.text)
    monkeypatch.setattr(sys, "argv", ["fit.py", "--recipe", str(recipe.path)])
    return recipe


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a-vs-bb.html", "bb"),
        ("bb-vs-a.csv", "bb"),
        ("bb-vs-cc.csv", "bb"),
        ("a-vs-b-vs-d.csv", "d"),
        ("base-vs-v.csv", "v"),
    ],
)
def test_the_side_of_a_comparison_that_is_no_version_is_found(file: str, name: str) -> None:
    assert command.unknown_side(file, ["a", "a-vs-b", "base"]) == name


@pytest.mark.parametrize("file", ["a.html", "a-vs-a.txt", "x/y"])
def test_what_is_no_comparison_is_told(file: str) -> None:
    with pytest.raises(DataError, match=f"^results/compare/{file}: a comparison is called <version>-vs-<version>"):
        command.unknown_side(file, ["a"])


def test_a_mistake_of_the_program_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(tmp_path, monkeypatch)
    with pytest.raises(FileNotFoundError):
        command.run(FitRecipe, lambda _: [Path("not there").stat() and Path()])


def test_the_check_of_code_knows_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdlora.flow.code import Code

    script = ROOT / "workflow/scripts/fit.py"
    recipe = asked(tmp_path, monkeypatch)
    command.check_code(recipe.model_copy(update={"code": Code().reach(script).identity}), script)
    with pytest.raises(DataError, match="the code of fit"):
        command.check_code(recipe.model_copy(update={"code": "0" * 16}), script)
    own = {"code": Code().reach(script).identity, "software": {"numpy": "0"}}
    with pytest.raises(DataError, match=r"packages of fit are not those .*: numpy was 0 and is \d"):
        command.check_code(recipe.model_copy(update=own), script)


@pytest.mark.parametrize(
    ("words", "here"),
    [
        ("", True),
        ("-n results/v8/metrics.csv", True),
        ("--profile none --executor local -- all", True),
        ("--executor slurm", False),
        ("--workflow-profile profiles/kubernetes -- all", False),
        ("--workflow-profile profiles/slurm --default-resources slurm_partition=gpu -- all", False),
    ],
)
def test_a_profile_says_where_jobs_run(words: str, here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login node without a GPU refuses no training that a node of the cluster will have one for."""
    monkeypatch.chdir(ROOT)
    assert command.runs_here(words.split()) is here


def test_a_profile_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake goes on without it, and would train on the head."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(ParamsError, match=r"--workflow-profile: there is no profiles/slrum; did you mean profiles/sl"):
        command.runs_here(["--workflow-profile", "profiles/slrum", "--", "all"])


def test_a_stage_starts_without_what_only_8_bit_optimizers_need() -> None:
    words = """
import sys
import sdlora.stages.train.run, sdlora.stages.sample.sample
print(sorted(name for name in ("bitsandbytes", "torch._inductor.compile_fx") if sys.modules.get(name)))
from sdlora.config.train import Train
from sdlora.stages.train.optimizers import adamw8bit
from torch import nn
print(type(adamw8bit([{"params": [nn.Parameter()], "lr": 1.0}], Train())).__module__)
"""
    place = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", words], env=place, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["[]", "bitsandbytes.optim.adamw"]


def test_no_kernel_is_fetched_from_a_hub(tmp_path: Path) -> None:
    """bitsandbytes imports `kernels` to load compiled code from a hub; in our processes it is not to be had."""
    records.write_text(tmp_path / "kernels/__init__.py", f"open({str(tmp_path / 'loaded')!r}, 'w')\n")
    words = "import sdlora, importlib.util; assert importlib.util.find_spec('kernels') is None; import kernels"
    place = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", words], env=place, capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in done.stderr and not (tmp_path / "loaded").exists()
