"""The DAG through profiles/kubernetes, on an API and pods of this machine: what is submitted, and what comes of it."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import kube
import pytest
import yaml
from helpers import ROOT, Project, counting, kill_trainings, timing, wait_for

from sdlora import __version__, records
from sdlora.flow import asking
from sdlora.stages.sample.recipe import SampleRecipe

NODES = records.read_json(Path(__file__).parent / "nodes/one-cpu-one-gpu.json")["items"]
PROFILE = ("--workflow-profile", "profiles/kubernetes", "--latency-wait", "5", "--seconds-between-status-checks", "1")
HEAD = ROOT / "profiles/kubernetes/head.yaml"
RAM_OF_A = ("sdlora", "preflight", "a", "--ram")
PAGE = ("results/a/metrics.csv", "results/a/report/index.html")
MANIFEST = "data/sets/small/manifest.jsonl"  # without a training, whose base would be asked what it forbids

HIDDEN = """
import pkgutil, sys
names = ("kubernetes", "snakemake_executor_plugin_kubernetes")
sys.modules.update(dict.fromkeys(names))
found = pkgutil.iter_modules
pkgutil.iter_modules = lambda *words: [one for one in found(*words) if one.name not in names]
"""


@pytest.fixture
def cluster(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kube.Cluster]:
    """A cluster whose one volume is this test's folder; commands find the cluster, and its pods do not."""
    (tmp_path / "cluster").mkdir()
    environment = Project(tmp_path, served).environment()
    with kube.cluster(tmp_path / "cluster", {"loras": tmp_path}, NODES, environment) as found:
        monkeypatch.setenv("HOME", str(found.folder))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield found


def head(volume: Path, *targets: str) -> tuple[str, ...]:
    """The command that submits, for a claim that is mounted there."""
    return ("snakemake", "--kubernetes-volume-persistent-volumes", f"loras:{volume}", *PROFILE, *targets)


def test_three_jobs_make_the_same_bytes(
    fresh: Project, built_once: Project, cluster: kube.Cluster, tmp_path: Path
) -> None:
    counts, reading_s = counting(fresh), timing(fresh)
    drawing = SampleRecipe.read(built_once.folder / ".sdlora/recipes/sample/a.json")
    records.write_json(fresh.folder / asking.kept(asking.drawing_asked(drawing)), 20_000)  # as of a large base
    fresh.command(*head(tmp_path, *PAGE))
    assert counts()["planned"] > len(cluster.jobs) == 3, "each job reads the plan"
    assert (counts()["settled"], counts()["locked"]) == (1, 1), "and changes nothing that the head owns"
    assert len(reading_s()) >= 3 and max(reading_s()) < 2, "of each job's CPU time"
    rules = [re.search("--allowed-rules ((?:[a-z]+ )+)", job.command) for job in cluster.jobs]
    assert [found and sorted(found[1].split()) for found in rules] == [
        ["caption", "encode", "fit", "flip"], ["train"], ["choose", "evaluate", "export", "report", "sample"],
    ]  # fmt: skip
    for job in cluster.jobs:
        assert job.container["image"] == f"sdlora:{__version__}"
        assert job.command.startswith(f"cd {fresh.folder} && "), job.command
        assert "pip install" not in job.command and "--deploy-sources" not in job.command
        assert job.node == "card-1" and job.limits["nvidia.com/gpu"] == "1"
    prepare, train, measure = cluster.jobs
    assert prepare.limits["memory"] == "6000Mi"  # captioning's; encoding is predicted to take less
    ram = int(fresh.command(*RAM_OF_A).stdout)
    assert train.limits["memory"] == f"{ram}Mi" and ram < 24_000
    assert train.body["spec"]["activeDeadlineSeconds"] == 24 * 60 * 60
    assert measure.limits["memory"] == "28000Mi"  # two at once of those that take most: sample and export
    for stage in ("train", "export", "sample", "choose", "evaluate", "report"):
        ours, theirs = (
            records.read_json(project.folder / f"results/a/made/{stage}.json")["outputs"]
            for project in (fresh, built_once)
        )
        assert ours == theirs, stage
    assert not cluster.secrets and len(cluster.deleted) == 3
    assert "Nothing to be done" in fresh.snakemake("-n", "results/a/metrics.csv")


def test_a_training_whose_node_is_lost_goes_on(built: Project, cluster: kube.Cluster, tmp_path: Path) -> None:
    built.edit("params.yaml", "    train: {rank: 4}", "    train: {rank: 4, steps: 60, checkpoint_every: 10}")
    straight = Project(tmp_path / "straight", built.python)
    shutil.copytree(built.folder, straight.folder)
    straight.snakemake("results/b/train_log.csv")
    store = built.folder / ".sdlora/store/train"
    before = {path.name for path in store.iterdir()}
    words = head(tmp_path, "results/b/train_log.csv")
    run = subprocess.Popen(words, cwd=built.folder, env=built.environment(), stderr=subprocess.DEVNULL)
    try:
        wait_for(
            lambda: [path for path in store.glob("*/state/step-000010/state.json") if path.parts[-4] not in before]
        )
        cluster.jobs[0].lose_node()
        kill_trainings(store)  # forks of the tests' server are not in the pod's group, and would outlive it
        assert run.wait(120) == 0
    finally:
        run.kill()
    assert ["--attempt 1 " in job.command for job in cluster.jobs] == [True, False]
    (log,) = (built.folder / ".snakemake/auxiliary/kubernetes-logs").iterdir()
    assert "rule train" in log.read_text("utf-8")
    assert cluster.asked == allowed(), "the head's role allows what is asked, and no more"
    resumed = re.search(r"resuming from step (\d+) of 60", built.read("logs/b/train.log").decode())
    assert resumed is not None and int(resumed[1]) >= 10
    for name in ("results/b/made/train.json", "results/b/train_log.csv"):
        assert built.read(name) == straight.read(name)


def allowed() -> set[tuple[str, str]]:
    """Resource and verb of what the head may do, by its manifest."""
    (role,) = [one for one in yaml.safe_load_all(HEAD.read_text("utf-8")) if one["kind"] == "Role"]
    return {(kind, verb) for rule in role["rules"] for kind in rule["resources"] for verb in rule["verbs"]}


def test_a_folder_on_no_volume_and_no_cluster_are_told(
    fresh: Project, cluster: kube.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = fresh.command(*head(tmp_path / "elsewhere", *PAGE), check=False)
    assert said.returncode and f"{fresh.folder} lies on no volume that jobs mount" in said.stderr
    assert "--kubernetes-volume-persistent-volumes CLAIM:/path" in said.stderr
    monkeypatch.setenv("HOME", str(fresh.folder))
    said = fresh.command(*head(tmp_path, *PAGE), check=False)
    assert said.returncode and "tells of a cluster" in said.stderr and "Traceback" not in said.stderr
    assert not cluster.jobs


def test_the_plan_needs_no_cluster_and_has_no_job_that_is_shorter_than_its_start(fresh: Project) -> None:
    fresh.edit("params.yaml", "run: [a, b]", "run: [a, b, c]")
    fresh.edit("params.yaml", "  b:\n", "  c: {lora: [{version: a, weight: 0.5}]}\n  b:\n")
    said = fresh.command(*head(fresh.folder, "-n", "all")).stdout
    assert re.search(r"resources: .*mem_mb=\d+.*runtime=1440, gpu_manufacturer=nvidia, gpu=1", said), said[-3000:]
    # those of groups are indented; a dry run does not say which are the head's own: the next test does
    assert {*re.findall(r"^(?:local)?rule (\w+):", said, re.MULTILINE)} == {
        "train", "adopt", "scrape", "report_all", "all"
    }  # fmt: skip


def test_every_rule_is_in_a_group_or_local_or_long() -> None:
    profiles = [
        yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text("utf-8")) for name in ("slurm", "kubernetes")
    ]
    groups, other = (dict(group.split("=") for group in profile["groups"]) for profile in profiles)
    assert groups == other
    rules = {
        name
        for path in (ROOT / "workflow/rules").glob("*.smk")
        for name in re.findall(r"^rule (\w+):", path.read_text("utf-8"), re.MULTILINE)
    }
    local = re.search(r"localrules:\n((?:    .*\n)+)", (ROOT / "Snakefile").read_text("utf-8"))
    assert local is not None
    here = {*re.findall(r"^    (\w+),", local[1], re.MULTILINE)} & rules
    long = {"train", "probe", "animate", "models", "base_quality", "adopt"}  # adopt is short: it would join versions
    assert here == {"scrape", "report_all", "compare", "studies"} and not here & {*groups}
    assert rules == {*groups} | here | long | {"unknown_version"}


def test_without_the_package_every_other_run_goes_on(fresh: Project) -> None:
    """As where Kubernetes' client was never installed: Snakemake imports all executors that it finds."""
    (fresh.folder / "sitecustomize.py").write_text(HIDDEN, "utf-8")
    alone = Project(fresh.folder)
    environment = {**alone.environment(), "PYTHONPATH": f"{fresh.folder}:src"}
    for words, said in (
        (("snakemake", "-n", MANIFEST), ""),
        (head(fresh.folder, *PAGE), "needs a package that is not here: snakemake-executor-plugin-kubernetes"),
    ):
        done = subprocess.run(words, cwd=fresh.folder, env=environment, text=True, capture_output=True, check=False)
        assert bool(done.returncode) == bool(said) and said in done.stderr, done.stderr[-3000:]


def test_the_heads_manifest_is_one_and_fits_the_profile() -> None:
    profile = yaml.safe_load((ROOT / "profiles/kubernetes/config.yaml").read_text("utf-8"))
    (volume,) = profile["kubernetes-volume-persistent-volumes"]
    claim, path = volume.split(":")
    found = {}
    for one in yaml.safe_load_all(HEAD.read_text("utf-8")):
        kube.check(one, f"V1{one['kind']}", one["kind"])
        found[one["kind"]] = one
    pod = found["Pod"]["spec"]
    assert found["PersistentVolumeClaim"]["metadata"]["name"] == claim
    assert found["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert pod["volumes"] == [{"name": claim, "persistentVolumeClaim": {"claimName": claim}}]
    assert pod["containers"][0]["volumeMounts"] == [{"name": claim, "mountPath": path}]
    assert pod["containers"][0]["image"] == profile["container-image"] == f"sdlora:{__version__}"
    assert pod["serviceAccountName"] == found["ServiceAccount"]["metadata"]["name"]
