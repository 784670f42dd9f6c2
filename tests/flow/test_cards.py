"""One card a job: pretended cards, real processes and locks; no torch, no GPU."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, Project, environment

from sdlora import records
from sdlora.errors import DataError
from sdlora.flow import cards, command
from sdlora.flow.recipe import Recipe
from sdlora.stages.animate.recipe import AnimateRecipe
from sdlora.stages.caption.recipe import CaptionRecipe
from sdlora.stages.choose.recipe import ChooseRecipe
from sdlora.stages.encode.recipe import EncodeRecipe
from sdlora.stages.evaluate.recipe import EvaluateRecipe
from sdlora.stages.probe.recipe import ProbeRecipe
from sdlora.stages.sample.recipe import SampleRecipe
from sdlora.stages.train.recipe import TrainRecipe

#: A thousand jobs, eight at a time, on four cards: each marks its card for a moment, which nobody else may do. One in
#: ten dies with its lease in its hands.
JOBS = """
import os, random, sys, time
from pathlib import Path
from sdlora.flow import cards

place, names = Path(sys.argv[1]), ["0", "1", "2", "GPU-8f/3"]

def job(number):
    source = random.Random(number)
    (held,) = cards.lease(names, place / "locks")
    mark = place / f"mark-{names.index(held.card)}"
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    time.sleep(source.random() * 0.004)
    mark.unlink()
    if source.random() < 0.1:
        os._exit(0)
    held.give_back()

running, failed, used = 0, 0, 0
for number in range(1000):
    if running == 8:
        failed, running = failed + bool(os.wait()[1]), running - 1
    if os.fork() == 0:
        random.seed(number)
        job(number)
        os._exit(0)
    running += 1
while running:
    failed, running = failed + bool(os.wait()[1]), running - 1
assert "torch" not in sys.modules
print(failed, sorted(path.name for path in (place / "locks").iterdir()))
"""


@pytest.mark.workflow
def test_a_thousand_jobs_never_share_a_card(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOBS, tmp_path], text=True, capture_output=True, check=True,
        env={**environment(), "PYTHONPATH": str(ROOT / "src")}, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 ['0.lock', '1.lock', '2.lock', 'GPU-8f_3.lock']", done.stderr[-2000:]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of two cards, as NVIDIA's tool tells of them."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU 0: Tesla T4 (UUID: GPU-1)\\nGPU 1: Tesla T4 (UUID: GPU-2)\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (cards.VISIBLE, *cards.ALLOCATOR, "CUDA_DEVICE_ORDER", "WORLD_SIZE", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "")  # comes back as it was
        monkeypatch.delenv(name)
    monkeypatch.setattr(cards, "_held", [])
    return tmp_path


@pytest.mark.workflow
def test_a_job_sees_its_card_alone(machine: Path) -> None:
    assert cards.of_this_machine() == ["0", "1"]
    (other,) = cards.lease(["0"], cards.folder())
    cards.take(1)
    assert (os.environ[cards.VISIBLE], os.environ["CUDA_DEVICE_ORDER"]) == ("1", "PCI_BUS_ID")
    other.give_back()
    assert cards.of_this_machine() == ["1"], "and so do the processes that it starts"


@pytest.mark.workflow
def test_a_driver_that_does_not_answer_is_told(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(cards, "PATIENCE_S", 0.1)
    with pytest.raises(DataError, match=r"nvidia-smi -L does not answer in 0\.1 s: mend the driver, or say which"):
        cards.of_this_machine()


@pytest.mark.workflow
@pytest.mark.parametrize("users_own", [None, *cards.ALLOCATOR])
def test_memory_is_not_torn_by_pictures_of_many_sizes(
    machine: Path, monkeypatch: pytest.MonkeyPatch, users_own: str | None
) -> None:
    if users_own is not None:
        monkeypatch.setenv(users_own, "max_split_size_mb:128")
    cards.take(1)
    found = {name: os.environ[name] for name in cards.ALLOCATOR if name in os.environ}
    assert found == (
        {cards.ALLOCATOR[0]: "expandable_segments:True"} if users_own is None else {users_own: "max_split_size_mb:128"}
    )


def test_only_the_cards_that_are_named_are_used(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cards.VISIBLE, "3, GPU-2")
    assert cards.of_this_machine() == ["3", "GPU-2"]
    cards.lease(["GPU-2"], cards.folder())[0].give_back()
    (taken,) = cards.lease(["3"], cards.folder())
    cards.take(1)
    assert os.environ[cards.VISIBLE] == "GPU-2" and "CUDA_DEVICE_ORDER" not in os.environ
    taken.give_back()
    for nothing in ("", "-1"):
        monkeypatch.setenv(cards.VISIBLE, nothing)
        assert cards.of_this_machine() == []
        cards.take(1)
        assert os.environ[cards.VISIBLE] == nothing


def test_every_job_of_slurm_has_its_own_locks(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cards.folder()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert cards.folder().name == f"{before.name}-77"


class Pretended(Recipe):
    """A job that computes on a GPU."""

    stage = "pretended"
    on_card = True


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Runs the job as its script would, and returns what it ends with: the card that it sees, as an error."""
    path = tmp_path / "recipe.json"
    path.write_text('{"wildcards": {}}')
    monkeypatch.setattr(sys, "argv", ["pretended.py", "--recipe", str(path)])

    def work(recipe: Pretended) -> list[Path]:
        raise DataError(f"this is {os.environ[cards.VISIBLE]}")

    def run() -> str:
        with pytest.raises(SystemExit) as ended:
            command.run(Pretended, work)
        return str(ended.value.code)

    return run


@pytest.mark.workflow
def test_a_script_has_its_card_before_its_work(machine: Path, started: Callable[[], str]) -> None:
    (other,) = cards.lease(["0"], cards.folder())
    assert started() == "error: this is 1"
    other.give_back()


SCRIPTS = """
import runpy, sys
from sdlora.flow import command
command.run = lambda *_, **__: None
for script in sys.argv[1:]:
    runpy.run_path(script)
    assert "torch" not in sys.modules, script
"""


@pytest.mark.workflow
def test_no_script_starts_cuda_before_it_has_its_card() -> None:
    """diffusers asks for cards when it is imported; which a process may see is then decided until it ends."""
    stages = sorted(path.stem for path in (ROOT / "workflow/rules").glob("*.smk") if "gpu=" in path.read_text("utf-8"))
    assert {"train", "sample", "choose", "encode", "caption", "evaluate", "probe", "animate"} <= {*stages}
    scripts = [ROOT / f"workflow/scripts/{stage}.py" for stage in stages]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS, *scripts], text=True, capture_output=True, check=False,
        env={**environment(), "PYTHONPATH": str(ROOT / "src")}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]


def test_one_of_several_processes_is_refused(
    machine: Path, started: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert started().startswith("error: this was started as one of 2 processes (accelerate launch, torchrun)")


PAIR = """
rule both:
    input: "1", "2"
rule one:
    output: "{number,[12]}"
    threads: 1
    resources: gpu=1
    shell: "touch here.{wildcards.number}; for i in $(seq 60); do [ -e here.1 -a -e here.2 ] && touch {output}; "
           "[ -e {output} ] && exit 0; sleep 0.05; done; exit 1"
"""


@pytest.mark.workflow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two jobs at once need two cores")
@pytest.mark.parametrize("count", [1, 2])
def test_the_number_of_cards_in_the_profile_is_all_that_is_changed(count: int, tmp_path: Path) -> None:
    """Two jobs of a card each, which end well only if they run at the same time."""
    profile = (ROOT / "profiles/default/profile.yaml").read_text("utf-8")
    assert "- gpu=1 " in profile
    records.write_text(tmp_path / "profiles/default/profile.yaml", profile.replace("- gpu=1 ", f"- gpu={count} "))
    records.write_text(tmp_path / "Snakefile", PAIR)
    done = Project(tmp_path).command("snakemake", "both", check=False)
    assert (done.returncode == 0) == (count == 2), done.stderr[-2000:]


def test_the_rules_count_the_jobs_that_take_a_card() -> None:
    rules = {path.stem: path.read_text("utf-8") for path in (ROOT / "workflow/rules").glob("*.smk")}
    counted = {name for name, text in rules.items() if re.search("gpu=(1|cards_of_training)", text)}
    on_cards = (AnimateRecipe, CaptionRecipe, ChooseRecipe, EncodeRecipe, ProbeRecipe, SampleRecipe, TrainRecipe)
    assert counted == {kind.stage for kind in on_cards if kind.on_card}


@pytest.mark.parametrize("asked", ["learning", "describing", "networks", None])
def test_measuring_takes_a_card_where_it_asks_a_network(asked: str | None) -> None:
    """The same number is the rule's resource: else it would compute beside whoever has leased the first card."""
    networks = {"learning": None, "describing": None, "networks": {}, **({asked: {"x": object()}} if asked else {})}
    assert EvaluateRecipe.model_construct(**networks).cards == (asked is not None)


def test_amds_cards_are_leased_if_somebody_says_which_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing tells of them here as NVIDIA's driver does of its own: two jobs would compute on the first in silence."""
    monkeypatch.setattr(cards, "_OF_AMD", tmp_path)
    monkeypatch.setattr(cards, "folder", lambda: tmp_path / "locks")
    monkeypatch.setattr(cards, "_held", [])
    for name in ("WORLD_SIZE", "PATH", cards.VISIBLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cards, "_DRIVERS_CARDS", tmp_path)
    cards.take(1)
    assert "AMD's GPUs are not counted" in capsys.readouterr().out and not cards._held
    monkeypatch.setenv(cards.VISIBLE, "0,1")
    cards.take(1)
    assert "not counted" not in capsys.readouterr().out and os.environ[cards.VISIBLE] in ("0", "1")
    cards._held[0].give_back()
