"""The DAG on a real Slurm of one node: same bytes as here, and a job that is put back into the queue goes on."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import slurm
from helpers import Project, counting, slow_steps, timing, wait_for

from sdlora import records

pytestmark = pytest.mark.skipif(
    bool(slurm.missing()), reason=f"of Slurm's daemons there is no {', '.join(slurm.missing())}: `make servers` as root"
)
RAM_OF_A = ("sdlora", "preflight", "a", "--ram")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm.cluster(tmp_path_factory.mktemp("c")) as environment:
        yield environment


@pytest.fixture
def on_slurm(cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The commands of this test find the cluster."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster[name])
    return cluster


def head(python: Path | str, *targets: str, jobs: str | None = None) -> tuple[str, ...]:
    """The command that submits jobs, which run with the same Python, or with one of their own."""
    code = slurm.HEAD if jobs is None else slurm.JOBS.format(jobs)
    return (str(python), "-c", code, *slurm.ON_SLURM, *targets)


def test_three_jobs_make_the_same_bytes(fresh: Project, built_once: Project, on_slurm: dict[str, str]) -> None:
    assert fresh.python is not None
    counts, reading_s = counting(fresh), timing(fresh)
    said = fresh.command(*head(fresh.python, "results/a/metrics.csv", "results/a/report/index.html")).stderr
    assert len(re.findall("has been submitted with SLURM jobid", said)) == 3, said[-3000:]
    assert counts()["planned"] > 3 and (counts()["settled"], counts()["locked"]) == (1, 1), "by the head alone"
    assert len(reading_s()) >= 3 and max(reading_s()) < 2, "of each job's CPU time"
    assert memory_asked_for(on_slurm, "rule_train") == int(fresh.command(*RAM_OF_A).stdout) < 24_000
    remembered = [project.folder / ".sdlora/asking" for project in (fresh, built_once)]
    # of training, encoding and drawing; a run on this machine does not ask
    assert [len([*folder.glob("*.json")]) for folder in remembered] == [3, 0]
    for stage in ("train", "export", "sample", "choose", "evaluate", "report"):
        ours, theirs = (
            records.read_json(project.folder / f"results/a/made/{stage}.json")["outputs"]
            for project in (fresh, built_once)
        )
        assert ours == theirs, stage
    logs = "".join(path.read_text("utf-8") for path in (fresh.folder / "logs/a").iterdir())
    assert "train: 4/4" in logs and "torchvision" not in logs, "what libraries say of themselves when they are imported"
    assert "Nothing to be done" in fresh.snakemake("-n", "results/a/metrics.csv")


def memory_asked_for(cluster: dict[str, str], rule: str) -> int:
    """MiB of the one job of a rule, as the cluster's own records have it."""
    words = ["scontrol", "show", "job", "--oneliner"]
    said = subprocess.run(words, env=cluster, capture_output=True, text=True, check=True).stdout
    (job,) = [line for line in said.splitlines() if f"Comment={rule}" in line]
    found = re.search(r"MinMemoryNode=(\d+(?:\.\d+)?)([MG])", job)
    assert found is not None, job
    return round(float(found[1]) * {"M": 1, "G": 1024}[found[2]])


def test_a_search_is_the_same_study_as_here(built: Project, on_slurm: dict[str, str], tmp_path: Path) -> None:
    """Both trials are in the queue at once; the best one is published and measured there, too."""
    here = Project(tmp_path / "here", built.python)
    shutil.copytree(built.folder, here.folder)
    words = ["sdlora", "search", "g", "--like", "a", "--set", "train.learning_rate=1e-2,1e-6", "--grid"]
    here.command(*words)
    programs = tmp_path / "programs"  # what the search calls `snakemake`, with the head's shorter waits
    programs.mkdir()
    (programs / "snakemake").write_text(f'#!/bin/sh\nexec {shlex.join(head(str(built.python)))} "$@"\n', "utf-8")
    (programs / "snakemake").chmod(0o755)
    found = built.environment()
    found["PATH"] = f"{programs}{os.pathsep}{found['PATH']}"
    done = subprocess.run(
        [*words, "--at-once", "2"], cwd=built.folder, env=found, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(re.findall("has been submitted with SLURM jobid", done.stderr)) == 4, done.stderr[-3000:]
    name = "results/searches/g/trials.csv"
    assert built.read(name) == here.read(name)
    ours, theirs = ([*project.folder.glob("results/g-trial*/metrics.csv")] for project in (built, here))
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs] and len(ours) == 1


def test_a_training_that_is_preempted_and_then_loses_its_node_goes_on(
    built: Project, served: Path, on_slurm: dict[str, str]
) -> None:
    """Its jobs run in Slurm's own steps, not in the tests' server: they are what Slurm stops.

    Preempted, it gets SIGTERM, ends as failed, and the head submits it again. Then its node is drained and it is put
    back into the queue: SIGTERM, SIGKILL two seconds later, and Slurm starts it again where there is a node.
    """
    built.edit("params.yaml", "    train: {rank: 4}", "    train: {rank: 4, steps: 80, checkpoint_every: 10}")
    slowly = slow_steps(built)  # long enough to be stopped
    straight = Project(built.folder.parent / "straight", built.python)
    shutil.copytree(built.folder, straight.folder)
    straight.snakemake("results/b/train_log.csv")
    slowly.touch()
    store = built.folder / ".sdlora/store/train"
    training = Training(built, store, frozenset(store.iterdir()), on_slurm)
    words = head(served, "results/b/train_log.csv", jobs=sys.executable)
    run = subprocess.Popen(words, cwd=built.folder, env=built.environment())
    try:
        wait_for(lambda: training.saved >= 20)
        first = training.jobs("RUNNING")
        training.slurm("sbatch", "--partition=urgent", "--cpus-per-task=4", "--output=/dev/null", "--wrap=true")
        wait_for(lambda: not {*first} & {*training.jobs()})
        saved = training.saved
        assert saved >= 20
        wait_for(lambda: training.goes_on_from(saved))
        second = training.jobs("RUNNING")
        assert len(first) == len(second) == 1 and first != second

        wait_for(lambda: training.saved >= 40)
        (node,) = {*training.slurm("sinfo", "-h", "-o", "%n").split()}
        training.slurm("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
        training.slurm("scontrol", "requeue", *second)
        wait_for(lambda: training.jobs("PENDING") == second)
        assert {*training.slurm("sinfo", "-h", "-o", "%T").split()} == {"drained"}
        then = training.saved
        training.slurm("scontrol", "update", f"nodename={node}", "state=resume")
        wait_for(lambda: training.goes_on_from(then))
        assert run.wait(300) == 0
    finally:
        run.kill()
    for name in ("results/b/made/train.json", "results/b/train_log.csv"):
        assert built.read(name) == straight.read(name)


@dataclass(frozen=True)
class Training:
    """The one training that is new in a project's store, and its jobs."""

    project: Project
    store: Path
    before: frozenset[Path]
    environment: dict[str, str]

    def slurm(self, *words: str) -> str:
        """What one of Slurm's commands says."""
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()

    def jobs(self, state: str = "all") -> list[str]:
        """Jobs in the queue, by number."""
        return self.slurm("squeue", "-h", "-o", "%i", *([] if state == "all" else ["-t", state])).split()

    @property
    def saved(self) -> int:
        """The newest state's step."""
        new = {*self.store.iterdir()} - self.before
        states = [path for one in new for path in one.glob("state/step-??????/state.json")]  # whole: no `.part`
        return max((int(path.parent.name[-6:]) for path in states), default=0)

    def goes_on_from(self, saved: int) -> bool:
        """Whether its log says so: nothing that was saved is lost."""
        log = self.project.folder / "logs/b/train.log"
        return log.exists() and f"resuming from step {saved} of 80" in log.read_text("utf-8")
