"""What a control group leaves of the machine's memory: Slurm, systemd and containers give a process less than all."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
#: By version: the limit, what is used, and what of it are file pages that the system takes back.
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def left_bytes(own: Path = OWN, root: Path = ROOT) -> int | None:
    """The least that this process' control group or one above it leaves; None where none has a limit.

    Args:
        own: Where Linux says which groups the process is in (cgroups(7)): `0::/path`, or `4:memory:/path` of version 1.
        root: Where the groups are mounted. In a container a group's own path may not be there, and the root is it.
    """
    left = [_left(folder, version) for version, folder in _groups(own, root)]
    return min((one for one in left if one is not None), default=None)


def _groups(own: Path, root: Path) -> Iterator[tuple[int, Path]]:
    """The groups of memory that a process is in, with those above them, and the version of their files."""
    for line in own.read_text("utf-8").splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, top = 2, root
        elif "memory" in controllers.split(","):
            version, top = 1, root / "memory"
        else:
            continue
        group = top / path.lstrip("/")
        while True:
            yield version, group
            if group == top or top not in group.parents:
                break
            group = group.parent


def _left(folder: Path, version: int) -> int | None:
    limit, used, pages = _FILES[version]
    if not (folder / limit).exists() or (text := (folder / limit).read_text().strip()) == "max":
        return None
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(text) - int((folder / used).read_text()) + int(statistics.get(pages, 0))
