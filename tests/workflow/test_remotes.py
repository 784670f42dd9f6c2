"""What one person pushes another pulls, and has nothing to do: over every kind of remote that docs/scale.md names."""

import shutil
from pathlib import Path

import pytest
import remotes
from helpers import Project

from sdlora.flow.hashing import sha256_of


@pytest.fixture(scope="module")
def versioned(built_once: Project, served: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The built project under git and DVC."""
    folder = tmp_path_factory.mktemp("versioned") / "project"
    shutil.copytree(built_once.folder, folder)
    project = Project(folder, served)
    project.command("git", "init", "-q", "-b", "main")
    project.command("dvc", "init", "-q")
    project.command("dvc", "repro", "-q")
    return project


@pytest.mark.parametrize("kind", remotes.REMOTES)
def test_what_is_pushed_is_pulled(versioned: Project, kind: str, tmp_path: Path) -> None:
    if kind in remotes.missing():
        pytest.skip(f"there is no {remotes.SSHD}: `make servers` as root")
    with remotes.REMOTES[kind](tmp_path) as remote:
        versioned.command("dvc", "remote", "add", "-q", "-f", "-d", "store", remote.url)
        for name, value in remote.options.items():
            versioned.command("dvc", "remote", "modify", "-q", "store", name, value)
        versioned.command("git", "add", "-A")
        versioned.command("git", "commit", "-q", "-m", kind)
        versioned.command("dvc", "push", "-q")
        versioned.command("git", "clone", "-q", str(versioned.folder), str(tmp_path / "clone"))
        clone = Project(tmp_path / "clone", versioned.python)
        lora = "results/b/b.safetensors"
        assert not (clone.folder / lora).exists()
        clone.command("dvc", "pull", "-q")
    assert sha256_of(clone.folder / lora) == sha256_of(versioned.folder / lora)
    assert not clone.plan("results/a/metrics.csv", "results/b/metrics.csv")
    assert "up to date" in clone.command("dvc", "status").stdout
