"""The lock files: one pin with hashes for every Python and platform that is supported."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHONS = ("3.11", "3.12", "3.13")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PIN = re.compile(
    r"^(?P<name>\S+)==(?P<version>\S+)(?: ; (?P<marker>.*?))? \\\n(?P<hashes>(?:    --hash=sha256:\w{64}.*\n)+)", re.M
)


def pins(lock: str, python: str, platform: str) -> Iterator[tuple[str, str]]:
    """Name and version of what is installed there."""
    place = {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": platform,
        "platform_machine": "x86_64", "platform_python_implementation": "CPython", "implementation_name": "cpython",
    }  # fmt: skip
    for match in PIN.finditer(lock):
        if match["marker"] is None or Marker(match["marker"]).evaluate(place):
            yield canonicalize_name(match["name"]), match["version"]


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["requirements.lock", "requirements-cuda.lock", "requirements-build.lock"])
def test_everything_is_pinned_once_by_hash(name: str, python: str, platform: str) -> None:
    lock = (ROOT / name).read_text("utf-8")
    assert PIN.sub("", lock).strip("\n").splitlines() == [line for line in lock.splitlines() if line.startswith("#")]
    found = [*pins(lock, python, platform)]
    versions = dict(found)
    assert len(versions) == len(found)
    if name == "requirements.lock":
        wanted = [
            *PROJECT["dependencies"],
            *(one for some in PROJECT["optional-dependencies"].values() for one in some),
        ]
        assert {canonicalize_name(Requirement(one).name) for one in wanted} - {"torch"} <= versions.keys()
        assert not {"torch", "triton"} & versions.keys(), "its build depends on the machine"
    if name == "requirements-cuda.lock":
        assert f"torch=={versions['torch']}" in PROJECT["dependencies"]
        assert ("nvidia-cublas" in versions) == (platform == "linux")
        shared = dict(pins((ROOT / "requirements.lock").read_text("utf-8"), python, platform))
        assert all(shared.get(package, version) == version for package, version in versions.items())


def test_make_and_pip_take_the_same_pythons() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]},<3.{int(PYTHONS[-1].partition('.')[2]) + 1}"
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (ROOT / "Makefile").read_text("utf-8")


DEFAULT = "torch==2.13.0"
INDEX = "--index-url https://example.org/cu126 torch==2.13.0"
LOCK = "--require-hashes --no-deps --only-binary :all: -r requirements-cuda.lock"
#: A Python whose `venv` makes an environment with nothing in it but programs that write down their words.
STUB = """#!/bin/sh
case "$1 $2" in
  "-m venv") ;;
  "-c "*print*) echo {version}; exit ;;
  *) exit ;;
esac
[ "$3" = --clear ] && rm -rf .venv && shift
echo "{name} $3" >> made
mkdir -p .venv/bin
echo "version = {version}.1" > .venv/pyvenv.cfg
printf '#!/bin/sh\\necho "$@" >> installed\\n[ ! -e full ]\\n' > .venv/bin/pip
chmod +x .venv/bin/pip
cp .venv/bin/pip .venv/bin/uv
"""


class Place:
    """A folder in which `make` installs nothing, with two Pythons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Makefile", "pyproject.toml", *(path.name for path in ROOT.glob("requirements*.lock"))):
            shutil.copy(ROOT / name, folder)
        for name, version in (("python3", "3.11"), ("python3.12", "3.12")):
            (folder / name).write_text(STUB.format(name=name, version=version), "utf-8")
            (folder / name).chmod(0o755)

    def make(self, *words: str) -> list[str]:
        """The Python that made the environment and the words with which torch was installed, if it was."""
        for name in ("made", "installed"):
            (self.folder / name).unlink(missing_ok=True)
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        left_out = {"PYTHON", "TORCH", "TORCH_INDEX", "TORCH_LOCK", "MAKEFLAGS", "MAKELEVEL"}
        environment = {name: value for name, value in os.environ.items() if name not in left_out} | {"PATH": path}
        command = ["make", "--no-print-directory", ".venv/installed", *words]
        done = subprocess.run(command, cwd=self.folder, env=environment, text=True, capture_output=True, check=False)
        assert (done.returncode != 0) == (self.folder / "full").exists(), done.stderr
        if not (self.folder / "made").exists():
            return []
        first = (self.folder / "installed").read_text("utf-8").splitlines()[0]
        options = "install --quiet --disable-pip-version-check --no-build-isolation "
        assert first.startswith(options)
        return [(self.folder / "made").read_text("utf-8").split()[0], first.removeprefix(options)]

    def install_as_before(self) -> None:
        """What `make` left behind before it wrote down what was asked for."""
        (self.folder / ".venv/asked").unlink()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["TORCH_INDEX=https://example.org/cu126"], ["python3", INDEX]),
        (["TORCH_LOCK=requirements-cuda.lock"], ["python3", LOCK]),
        (["TORCH=torch==2.12.0"], ["python3", "torch==2.12.0"]),
        (["PYTHON=python3.12"], ["python3.12", DEFAULT]),
    ],
)
def test_another_torch_or_python_is_installed_into_an_environment_that_is_there(
    words: list[str], expected: list[str], place: Place
) -> None:
    assert place.make() == ["python3", DEFAULT]
    assert place.make() == []
    (place.folder / ".venv/torch-2.13.0+cpu").touch()
    assert place.make(*words) == expected
    assert not (place.folder / ".venv/torch-2.13.0+cpu").exists(), "pip would take it for 2.13.0"
    assert place.make(*words) == place.make() == [], "what was asked for holds"
    os.utime(place.folder / "requirements.lock", times=None)
    os.utime(place.folder / ".venv/installed", times=(0, 0))
    assert place.make() == expected, "also for what a lock file changes later"


@pytest.mark.workflow
def test_only_what_was_not_installed_is_installed(place: Place) -> None:
    place.make()
    place.install_as_before()
    same = ["PYTHON=python3", "TORCH=torch==2.13.0", "TORCH_INDEX=", "TORCH_LOCK="]
    assert place.make() == place.make(*same) == []
    assert place.make("TORCH_LOCK=requirements-cuda.lock") == ["python3", LOCK]
    assert place.make("TORCH_INDEX=https://example.org/cu126") == ["python3", INDEX], "not by the lock of before"
    (place.folder / "full").touch()
    assert place.make("TORCH_INDEX=") == ["python3", DEFAULT]
    (place.folder / "full").unlink()
    assert place.make() == ["python3", DEFAULT], "an installation that failed is gone on with"
    assert place.make() == []


@pytest.mark.workflow
def test_the_container_installs_as_make_does() -> None:
    """Its only way to packages is the Makefile, from files that are in its context."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert 'make TORCH_LOCK="${TORCH_LOCK}" TORCH_INDEX="${TORCH_INDEX}" .venv/installed' in text
    assert not re.search(r"\bpip3? install\b", text)
    asked = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    for name in asked:
        assert (ROOT / name).exists(), name
        assert any(Path(name).match(pattern) for pattern in allowed), name
    rule = re.search(r"^\$\(INSTALLED\): (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert rule is not None and {*rule[1].split()} <= asked
    torch = re.search(r"^ARG TORCH_INDEX=(.+)$", text, re.M)
    assert torch is not None
    words = ["make", "-n", "-B", ".venv/installed", "TORCH_LOCK=", f"TORCH_INDEX={torch[1]}"]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, check=True)
    assert f"--index-url {torch[1]} torch==" in done.stdout
