"""Ten small versions on this machine and as one, two and four Slurm jobs at once: wall time, and whether bytes differ.

    python -m benchmarks.slurm_jobs            # as root, after `make servers`

Each row starts from a project in which nothing has run: the tests' small one, with ten ranks. The cluster is one node,
this machine, so that jobs share its cores; what Slurm costs is what the rows of one job and of no Slurm differ by.
`planned` is the time until the first job starts: what the head needs to read the project and to plan.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import slurm  # noqa: E402
from helpers import SMALL, environment, make_project  # noqa: E402

VERSIONS = 10
JOBS = (1, 2, 4)
STAGES = ("caption", "encode", "train", "sample", "choose")  # what asks for a card, of which there is none
FILES = ("metrics.csv", "train_log.csv", "{version}.safetensors")
ON_SLURM = (
    "-c", slurm.HEAD, *slurm.ON_SLURM, "--set-resources", *(f"{stage}:gpu=0" for stage in STAGES),
    *(f"{stage}:mem_mb=2000" for stage in ("sample", "choose")), "--jobs",
)  # fmt: skip
LOCAL = ("-m", "snakemake", "--cores", "1")


def settings() -> str:
    """The tests' small settings, with ten versions of rank 2 to 11."""
    names = [f"r{rank}" for rank in range(2, 2 + VERSIONS)]
    above = SMALL[: SMALL.index("versions:")].replace("run: [a, b]", f"run: [{', '.join(names)}]")
    return above + "versions:\n" + "".join(f"  {name}:\n    train: {{rank: {name[1:]}}}\n" for name in names)


def timed(folder: Path, words: tuple[str, ...], found: dict[str, str]) -> tuple[float, float, str]:
    """Seconds until the first job and until the end, and one hash of all results of a project made from nothing."""
    project = make_project(folder, settings())
    began, first = time.monotonic(), 0.0
    log = folder / "run.log"
    with log.open("w", encoding="utf-8") as said:
        run = subprocess.Popen([sys.executable, *words, "all"], cwd=folder, env=found, stdout=said, stderr=said)
        while run.poll() is None:
            if not first and "rule scrape:" in log.read_text("utf-8"):
                first = time.monotonic() - began
            time.sleep(0.1)
    if run.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{log.read_text('utf-8')[-3000:]}")
    whole = hashlib.sha256()
    for rank in range(2, 2 + VERSIONS):
        for name in FILES:
            whole.update(project.read(f"results/r{rank}/{name.format(version=f'r{rank}')}"))
    return first, time.monotonic() - began, whole.hexdigest()


def main() -> None:
    """Print the table as Markdown."""
    if missing := slurm.missing():
        raise SystemExit(f"of Slurm's daemons there is no {', '.join(missing)}: `make servers` as root")
    print("| jobs at once | planned, s | all ten versions, s | sha256 of their results |", flush=True)
    print("| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        base = Path(folder)
        base.chmod(0o711)
        rows = [("this machine, no Slurm", LOCAL, environment())]
        (base / "c").mkdir()
        with slurm.cluster(base / "c", cores=2 * (os.cpu_count() or 1)) as found:
            rows += [(f"Slurm, {jobs}", (*ON_SLURM, str(jobs)), {**found, **environment(), "PATH": _path(found)})
                     for jobs in JOBS]  # fmt: skip
            for number, (name, words, where) in enumerate(rows):
                first, whole, digest = timed(base / str(number), words, where)
                print(f"| {name} | {first:.1f} | {whole:.0f} | {digest[:12]} |", flush=True)


def _path(found: dict[str, str]) -> str:
    """This environment's Python first, then what finds Slurm."""
    return f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"


if __name__ == "__main__":
    main()
