"""Where DVC was never installed: everything works but its own commands."""

import ast
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT, Project
from stage_server import HIDDEN

from sdlora import records

COMMANDS = ("snakemake", "sdlora")
STAGES = ("train", "export", "sample", "choose", "evaluate", "report")
SYSTEM = "/usr/bin:/bin"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def without(fresh: Project, tmp_path: Path) -> Command:
    """Runs a command in a project where neither the package nor the program can be found."""
    assert fresh.python is not None
    (tmp_path / "bin").mkdir()
    for name in COMMANDS:
        (tmp_path / "bin" / name).symlink_to(fresh.python.parent / "bin" / name)
    (tmp_path / "bin/python").symlink_to(fresh.python)
    environment = {**fresh.environment(), "PATH": f"{tmp_path / 'bin'}{os.pathsep}{SYSTEM}", HIDDEN: "dvc"}

    def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            words, cwd=fresh.folder, env=environment, text=True, capture_output=True, check=False, timeout=300
        )
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done

    said = run("python", "-c", "import dvc.cli", check=False)
    assert said.returncode and "ModuleNotFoundError" in said.stderr
    assert shutil.which("dvc", path=environment["PATH"]) is None
    return run


def test_a_version_is_made_compared_and_told_of(without: Command, fresh: Project, built_once: Project) -> None:
    assert "rule train" in without("snakemake", "-n", "results/a/metrics.csv").stdout
    page = "results/a/report/index.html"
    without("snakemake", "--cores", "1", "results/a/metrics.csv", page)
    for stage in STAGES:
        ours, theirs = (
            records.read_json(project.folder / f"results/a/made/{stage}.json")["outputs"]
            for project in (fresh, built_once)
        )
        assert ours == theirs, stage
    assert "<html" in fresh.read(page).decode()
    assert without("sdlora", "compare", "a", "base").stdout == fresh.command("sdlora", "compare", "a", "base").stdout
    assert "back through" in without("sdlora", "provenance", "a").stdout
    assert "runs.html" in without("sdlora", "runs").stdout
    assert "Nothing to be done" in without("snakemake", "-n", "results/a/metrics.csv").stdout
    said = without("sdlora", "doctor").stdout
    (line,) = [line for line in said.splitlines() if line.startswith("dvc ")]
    assert line.split(maxsplit=1)[1].startswith("not installed: `dvc repro`, `exp`, `push`, `pull` and `checkout` are")


def imported(file: Path) -> Iterator[str]:
    """The top-level packages that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_nothing_imports_or_starts_it() -> None:
    """What the run above does not reach, such as a search, has no line that could."""
    sources = [file for folder in ("src", "workflow", "tools") for file in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    assert [file for file in sources if any(name.startswith("dvc") for name in imported(file))] == []
    calls = [
        (file.name, node.args[0])
        for file in sources
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and node.args and "subprocess" in ast.unparse(node.func)
    ]
    assert calls and [place for place in calls if "dvc" in ast.unparse(place[1])] == []
