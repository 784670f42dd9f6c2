"""What control groups leave, in trees of files as Linux has them."""

from pathlib import Path

import pytest

from sdlora.memory.limits import left_bytes

NAMES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def group(folder: Path, limit: str, used: int, pages: int, version: int = 2) -> None:
    """One control group's files of memory."""
    files = NAMES[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files[0]).write_text(f"{limit}\n")
    (folder / files[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{files[2]} {pages}\n")


def process(folder: Path, *lines: str) -> Path:
    """What Linux says of the groups that a process is in."""
    (folder / "own").write_text("".join(f"{line}\n" for line in lines))
    return folder / "own"


@pytest.mark.parametrize(("job", "step", "left"), [("1000", "max", 800), ("max", "700", 630), ("1000", "700", 630)])
def test_the_narrowest_group_counts(tmp_path: Path, job: str, step: str, left: int) -> None:
    """Slurm limits a job, and each of its steps below it."""
    root = tmp_path / "root"
    group(root / "slurm/job", job, 300, 100)
    group(root / "slurm/job/step", step, 90, 20)
    assert left_bytes(process(tmp_path, "0::/slurm/job/step"), root) == left


def test_the_first_version_has_a_tree_for_memory(tmp_path: Path) -> None:
    root = tmp_path / "root"
    group(root / "memory", "9223372036854771712", 5, 0, version=1)  # none
    group(root / "memory/slurm/job", "1000", 300, 100, version=1)
    assert left_bytes(process(tmp_path, "9:cpu,cpuacct:/", "4:memory:/slurm/job", "0::/"), root) == 800


def test_in_a_container_the_root_is_the_group(tmp_path: Path) -> None:
    """Its own path is the machine's, where it is not hidden; a container sees its group as the root."""
    root = tmp_path / "root"
    group(root, "1000", 300, 100)
    assert left_bytes(process(tmp_path, "0::/system.slice/docker-1.scope"), root) == 800
    assert left_bytes(process(tmp_path, "0::/"), root) == 800


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    root = tmp_path / "root"
    group(root / "user.slice", "max", 300, 100)
    assert left_bytes(process(tmp_path, "0::/user.slice/shell"), root) is None
    assert left_bytes(tmp_path / "no Linux", root) is None
