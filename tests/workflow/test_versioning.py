"""Versions under git and DVC: what is pushed is pulled, experiments come and go, nothing is trained twice."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import remotes
from helpers import Project

from sdlora import records
from sdlora.flow.hashing import sha256_of

LORA = "results/b/b.safetensors"


@pytest.fixture(scope="module")
def versioned(built_once: Project, served: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The built project under git and DVC, in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("versioned") / "my project"
    shutil.copytree(built_once.folder, folder)
    project = Project(folder, served)
    project.command("git", "init", "-q", "-b", "main")
    project.command("dvc", "init", "-q")
    project.command("dvc", "repro", "-q")
    commit(project, "rank 4")
    return project


@pytest.fixture
def copied(versioned: Project, tmp_path: Path) -> Project:
    """A copy that a test may change."""
    shutil.copytree(versioned.folder, tmp_path / "my project")
    return Project(tmp_path / "my project", versioned.python)


def commit(project: Project, message: str) -> None:
    project.command("git", "add", "-A")
    project.command("git", "commit", "-q", "-m", message)


def push(project: Project, remote: remotes.Remote, message: str) -> None:
    """Make a remote the project's own, and push to it."""
    project.command("dvc", "remote", "add", "-q", "-f", "-d", "store", remote.url)
    for name, value in remote.options.items():
        project.command("dvc", "remote", "modify", "-q", "store", name, value)
    commit(project, message)
    project.command("dvc", "push", "-q")


def clone(project: Project, folder: Path) -> Project:
    project.command("git", "clone", "-q", str(project.folder), str(folder))
    return Project(folder, project.python)


def has_nothing_to_do(project: Project) -> bool:
    return not project.plan("results/a/metrics.csv", "results/b/metrics.csv")


def test_dvc_records_what_snakemake_made_without_running_it(versioned: Project) -> None:
    assert "Data and pipelines are up to date" in versioned.command("dvc", "status").stdout
    done = versioned.command("dvc", "repro")
    assert "Running stage" not in done.stdout
    assert not versioned.plan("all")


def test_a_clone_after_dvc_pull_has_nothing_to_do(versioned: Project, tmp_path: Path) -> None:
    with remotes.folder(tmp_path) as remote:
        push(versioned, remote, "a folder")
        copy = clone(versioned, tmp_path / "clone")
        assert not (copy.folder / LORA).exists()
        copy.command("dvc", "pull", "-q")
    assert sha256_of(copy.folder / LORA) == sha256_of(versioned.folder / LORA)
    assert has_nothing_to_do(copy)
    assert "Data and pipelines are up to date" in copy.command("dvc", "status").stdout
    copy.edit("params.yaml", "rank: 4", "rank: 8")
    assert copy.plan("results/a/metrics.csv", "results/b/metrics.csv") == {
        "train",
        "export",
        "sample",
        "choose",
        "evaluate",
    }
    copy.command("dvc", "repro", "-q", "lora@b")
    assert copy.read("results/b/made/train.json") != versioned.read("results/b/made/train.json")
    assert "rank" in copy.command("dvc", "params", "diff").stdout
    assert "psnr_db" in copy.command("dvc", "metrics", "diff", "--all").stdout
    assert has_nothing_to_do(copy)
    commit(copy, "rank 8")
    pictures_pair_by_name(copy, versioned)
    # an older commit and back, with Snakemake's folder of the newer one still there
    for revision in ("HEAD~1", "main"):
        copy.command("git", "checkout", "-q", revision)
        copy.command("dvc", "checkout", "-q")
        assert has_nothing_to_do(copy)


def pictures_pair_by_name(copy: Project, before: Project) -> None:
    """`dvc plots diff` shows the chosen step's picture of each reference beside that of the commit before."""
    found = json.loads(copy.command("dvc", "plots", "diff", "--json", "-o", "diff", "HEAD~1", "HEAD").stdout)["data"]
    names = [f"results/b/best/{path.name}" for path in sorted((copy.folder / "results/b/best").glob("*.png"))]
    best = records.read_json(copy.folder / "results/b/best.json")
    assert [Path(name).stem for name in names] == best["references"]
    assert {name for name in found if name.startswith("results/b/best/")} == set(names)
    assert any(name.endswith("results/b/curves/psnr_db.csv") for name in found)
    for name in names:
        old, new = (Path(picture["url"]).read_bytes() for picture in found[name])
        assert {old, new} == {before.read(name), copy.read(name)} and old != new
        step = f"samples/step-{best['best_step']:06d}"
        assert copy.read(name) in [path.read_bytes() for path in (copy.folder / "results/b" / step).iterdir()]
    shutil.rmtree(copy.folder / "diff")


@pytest.mark.parametrize("kind", remotes.REMOTES)
def test_what_is_pushed_is_pulled(versioned: Project, kind: str, tmp_path: Path) -> None:
    """Over the network; a folder is `test_a_clone_after_dvc_pull_has_nothing_to_do`'s."""
    if kind in remotes.missing():
        pytest.skip(f"there is no {remotes.SSHD}: `make servers` as root")
    with remotes.REMOTES[kind](tmp_path) as remote:
        push(versioned, remote, kind)
        copy = clone(versioned, tmp_path / "clone")
        assert not (copy.folder / LORA).exists()
        copy.command("dvc", "pull", "-q")
    assert sha256_of(copy.folder / LORA) == sha256_of(versioned.folder / LORA)
    assert has_nothing_to_do(copy)
    assert "up to date" in copy.command("dvc", "status").stdout


def test_experiments_come_and_go(copied: Project) -> None:
    """As docs/reproducibility.md has them: here, and in a copy from the queue."""
    before = sha256_of(copied.folder / LORA)
    copied.command("dvc", "exp", "run", "-S", "versions.b.train.rank=8", "-n", "rank8", "lora@b")
    here = sha256_of(copied.folder / LORA)
    assert "versions.b.train.rank  4       8" in copied.command("dvc", "exp", "diff").stdout
    copied.command("git", "checkout", ".")
    copied.command("dvc", "checkout", "-q")
    assert sha256_of(copied.folder / LORA) == before
    assert has_nothing_to_do(copied)

    copied.command("dvc", "exp", "run", "--queue", "-S", "versions.b.train.rank=2", "-n", "rank2", "lora@b")
    assert sha256_of(copied.folder / LORA) == before
    copied.command("dvc", "exp", "run", "--run-all")
    assert sha256_of(copied.folder / LORA) == before
    shown = csv.DictReader(copied.command("dvc", "exp", "show", "--csv").stdout.splitlines())
    ranks = {row["Experiment"] or row["rev"]: row["versions.b.train.rank"] for row in shown}
    assert ranks == {"workspace": "4", "main": "4", "rank8": "8", "rank2": "2"}

    # what was trained in the queue's copy is not trained here
    for name, its in (("rank8", here), ("rank2", None)):
        copied.command("dvc", "exp", "apply", name)
        assert sha256_of(copied.folder / LORA) not in {before, *([] if its else [here])}
        assert its in (None, sha256_of(copied.folder / LORA))
        assert has_nothing_to_do(copied)


def test_an_experiment_in_a_copy_that_goes_away(copied: Project) -> None:
    """`--temp`: nothing here changes until its result is applied."""
    before = {name: copied.read(name) for name in (LORA, "params.yaml", "results/b/made/train.json")}
    copied.command("dvc", "exp", "run", "--temp", "-S", "versions.b.train.rank=3", "-n", "rank3", "lora@b")
    assert {name: copied.read(name) for name in before} == before
    assert has_nothing_to_do(copied)
    copied.command("dvc", "exp", "apply", "rank3")
    assert b"rank: 3" in copied.read("params.yaml") and copied.read(LORA) != before[LORA]
    assert has_nothing_to_do(copied)


def test_a_tampered_output_is_told_by_name_and_lost_to_nobody(copied: Project) -> None:
    """In place, as an editor writes: where the disk has hard links the store's copy is tampered with, too."""
    name = "data/sets/small/pad-edge-64/captions.jsonl"
    made = copied.read(name)
    edited = made.replace(b"captain", b"skipper")
    (copied.folder / name).write_bytes(edited)
    said = copied.snakemake("results/b/metrics.csv")
    note = f"note: {name} has changed since caption made it: it will be made again, and the changed file is kept as "
    (kept,) = [line.removeprefix(note) for line in said.splitlines() if line.startswith(note)]
    assert copied.read(kept) == edited and copied.read(name) == made
    assert has_nothing_to_do(copied) and "note" not in copied.snakemake("-n", "all")


def test_a_version_is_renamed_added_and_removed(copied: Project) -> None:
    copied.edit("params.yaml", "run: [a, b]", "run: [a, rank-4, c]")
    copied.edit("params.yaml", "  b:\n", "  c:\n    train: {rank: 2}\n  rank-4:\n")
    # a name is no setting: both are the same trainings as before
    said = copied.command("dvc", "repro").stdout
    assert said.count("these settings were trained before") == 2 and "loss" not in said
    last = "checkpoints/step-000004/pytorch_lora_weights.safetensors"
    for renamed, name in (("rank-4", "b"), ("c", "a")):
        assert copied.read(f"results/{renamed}/{last}") == copied.read(f"results/{name}/{last}")
    assert "results/b/" not in copied.command("dvc", "status").stdout
    commit(copied, "rank-4")
    # a version that is only removed: nothing is made anew, and what nobody else has is collected
    gone, kept = (cached(copied, f"results/{name}/{last}") for name in ("a", "rank-4"))
    copied.edit("params.yaml", "run: [a, rank-4, c]", "run: [rank-4]")
    copied.edit("params.yaml", "  a:\n    train: {rank: 2}\n  c:\n    train: {rank: 2}\n", "")
    assert not copied.plan("results/rank-4/metrics.csv")
    done = copied.command("dvc", "repro")
    assert "Execute" not in done.stdout + done.stderr
    assert "up to date" in copied.command("dvc", "status").stdout
    cache = copied.folder / ".dvc/cache/files"
    before = {path for path in cache.rglob("*") if path.is_file()}
    assert {gone, kept} <= before
    copied.command("dvc", "gc", "--workspace", "--force")
    after = {path for path in cache.rglob("*") if path.is_file()}
    assert after < before and gone not in after and kept in after
    shutil.rmtree(copied.folder / "results/rank-4/export")
    copied.command("dvc", "checkout", "-q")
    assert not copied.plan("results/rank-4/metrics.csv")


def cached(project: Project, name: str) -> Path:
    """Where DVC's cache has the content of a file."""
    md5 = hashlib.md5(project.read(name), usedforsecurity=False).hexdigest()
    return project.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
