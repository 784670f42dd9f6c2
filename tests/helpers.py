"""What tests share: a small copy of the repository in which the whole DAG runs in a minute, and the embedded base."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
from PIL import Image

from sdlora.config.params import Base

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported
# read when torch is imported: the tests' workers share the cores, and threads that wait for each other spin
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
TINY = Base(model=str(ROOT / "models/tiny-sd"), family="sd", size_px=64, captioner="-")
COPIED = ("Snakefile", "dvc.yaml", "workflow", "profiles", "src", "models", ".gitignore", ".dvcignore", "votes.jsonl")

# Two versions that share everything but their rank, on six pictures of the embedded character.
SMALL = """
base: tiny
dataset: small
run: [a, b]
threads: 1
keep_runs: 20
bases:
  tiny: {model: models/tiny-sd, family: sd, size_px: 64, captioner: models/tiny-blip}
datasets:
  small:
    sources: [{kind: folder, path: data/embedded/small}]
    trigger: captain
    held_out: references
defaults:
  train: {optimizer: adamw8bit, lr_schedule: constant, steps: 4, checkpoint_every: 2, learning_rate: 1e-3}
  sample: {inference_steps: 3, max_references: 2, hires: {factor: 1.5, denoising_strength: 0.35}}
  evaluate: {bootstrap_samples: 100}
presets: {}
versions:
  a:
    train: {rank: 2}
  b:
    train: {rank: 4}
"""


@cache
def shipped_with_v8() -> str:
    """The shipped `params.yaml` with v8 for its only version: read in half the time where a test adds its own."""
    before, _, versions = (ROOT / "params.yaml").read_text("utf-8").partition("\nversions:\n")
    v8 = re.search(r"^  v8:\n(    .*\n)+", versions, re.MULTILINE)
    assert v8
    return re.sub(r"\nrun: .*", "\nrun: [v8]", before) + f"\nversions:\n{v8[0]}"


class Project:
    """A working copy of the pipeline and the commands a user types in it.

    Args:
        folder: The copy.
        python: What commands and jobs are started with, where it is not Python itself: the client of a server that
            has imported all libraries (`stage_server.py`).
    """

    def __init__(self, folder: Path, python: Path | None = None) -> None:
        self.folder, self.python = folder, python

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment(), text=True, capture_output=True, check=False, timeout=600
        )
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    def snakemake(self, *words: str, check: bool = True) -> str:
        done = self.command("snakemake", "--cores", "1", *words, check=check)
        return done.stdout + done.stderr

    def environment(self) -> dict[str, str]:
        """With the commands of this project's Python first."""
        found = environment()
        if self.python is not None:
            found["PATH"] = f"{self.python.parent / 'bin'}{os.pathsep}{found['PATH']}"
        return found

    def plan(self, *targets: str) -> set[str]:
        """The jobs that `snakemake -n` wants, as rule names (`all` left out)."""
        return set(self.plan_list(*targets))

    def plan_list(self, *targets: str) -> list[str]:
        text = self.snakemake("-n", *targets)
        lines = [line.strip().rstrip(":").split() for line in text.splitlines()]
        rules = [words[1] for words in lines if len(words) == 2 and words[0] in ("rule", "localrule")]
        return sorted(rule for rule in rules if rule != "all")

    def edit(self, path: str, before: str, after: str) -> None:
        file = self.folder / path
        text = file.read_text("utf-8")
        assert before in text, f"{before!r} is not in {path}"
        file.write_text(text.replace(before, after, 1), encoding="utf-8")

    def read(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()


def environment() -> dict[str, str]:
    """The user's environment with this repository's tools first."""
    binaries = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "src",
        "DVC_NO_ANALYTICS": "1",
        "HF_HUB_OFFLINE": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        # models are 47 MB of numbers, which no compression makes smaller
        **{"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.compression", "GIT_CONFIG_VALUE_0": "0"},
        "PYTHONDONTWRITEBYTECODE": "",  # many processes read a copy's sources
        **{f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }


def slow_steps(project: Project) -> Path:
    """A file: while it lies there, each step of the project's trainings takes a tenth of a second more, and no core."""
    ends = "    return total\n\n\ndef train_loop"
    wait = "    import time\n    from pathlib import Path\n\n    time.sleep(0.1 * Path('slowly').exists())\n"
    project.edit("src/sdlora/stages/train/loop.py", ends, wait + ends)
    return project.folder / "slowly"


def counting(project: Project) -> Callable[[], dict[str, int]]:
    """Have a project's own code note when it plans, settles what is fresh, and locks the folder: how often, so far."""
    places = {
        "planned": ("plan.py", "    seen = Seen()\n    found:"),
        "settled": ("freshness.py", "    try:\n        return _settle(jobs)"),
        "locked": ("lock.py", "    global _held\n    try:"),
    }
    for name, (file, before) in places.items():
        first, rest = before.split("\n", 1)
        note = f'    with open("{name}.count", "a") as count:\n        count.write("x")\n'
        after = f"{first}\n{note}{rest}" if first.strip().startswith("global") else f"{note}{before}"
        project.edit(f"src/sdlora/flow/{file}", before, after)

    def found() -> dict[str, int]:
        paths = {name: project.folder / f"{name}.count" for name in places}
        return {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}

    return found


def timing(project: Project) -> Callable[[], list[float]]:
    """Have jobs that run elsewhere note what reading the Snakefile took them: CPU seconds each, so far."""
    project.edit("Snakefile", "import re\n", "import re\nimport time\n\nBEGAN = time.process_time()\n")
    with (project.folder / "Snakefile").open("a", encoding="utf-8") as snakefile:
        snakefile.write("\n\nif not workflow.is_main_process:\n    with open('read.txt', 'a') as noted:\n")
        snakefile.write("        print(time.process_time() - BEGAN, file=noted)\n")
    path = project.folder / "read.txt"
    return lambda: [float(line) for line in path.read_text("utf-8").split()] if path.exists() else []


def wait_for(found: Callable[[], object], seconds: float = 120) -> None:
    """Wait until something is so."""
    limit = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)


def at_work(folder: Path) -> list[int]:
    """The processes that stand in a folder: jobs are forks of the tests' server, in no group with who started them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").resolve(strict=True) == folder.resolve():
                found.append(int(process.name))
    return [process for process in found if process != os.getpid()]


def kill(processes: list[int]) -> None:
    """`kill -9`."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def kill_trainings(store: Path) -> None:
    """`kill -9` of whoever is at work in a store, and of nobody else."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(Path(file.path).is_relative_to(store) for file in process.open_files()):
                process.kill()


def kill_all_at_work(folder: Path) -> None:
    """`kill -9` of everything that stands in a folder, until nothing does."""

    def nobody() -> bool:
        kill(found := at_work(folder))
        return not found

    wait_for(nobody)


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nobody listens."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def make_project(folder: Path, params: str = SMALL, python: Path | None = None, embedded_base: bool = False) -> Project:
    """Copy what the pipeline needs and write small settings and pictures.

    Args:
        folder: The copy.
        params: Its settings.
        python: As `Project` takes it. The server's base then has the place of the embedded one, models/tiny-sd: the
            same classes with random weights, a third of the operations.
        embedded_base: Whether it stays the embedded one, whose pictures a training moves as far as its settings say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(".work", "*.egg-info"))
        elif source.exists():
            shutil.copy2(source, folder / name)
    if python is not None and not embedded_base:
        shutil.rmtree(folder / "models/tiny-sd")
        shutil.copytree(python.with_name("small-sd"), folder / "models/tiny-sd")
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    captain = ROOT / "data" / "embedded" / "captain"
    for split, count in (("train", 4), ("references", 2)):
        for number in range(1, count + 1):
            target = folder / "data/embedded/small" / split / f"{number:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(captain / split / f"{number:03d}.png") as picture:
                picture.resize((picture.width // 2, picture.height // 2)).save(target)
    return Project(folder, python)
