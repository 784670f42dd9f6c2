"""The lock files: one pin with hashes for every Python and platform that is supported."""

import re
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


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--no-build-isolation torch==2.13.0\n"),
        (["TORCH_INDEX=https://example.org/cu126"], "--index-url https://example.org/cu126 torch==2.13.0\n"),
        (
            ["TORCH_LOCK=requirements-cuda.lock"],
            "--require-hashes --no-deps --only-binary :all: -r requirements-cuda.lock\n",
        ),
        (["PYTHON=python3.12"], "python3.12 -m venv .venv\n"),
    ],
)
def test_what_make_installs(words: list[str], said: str) -> None:
    done = subprocess.run(
        ["make", "-n", "-B", ".venv/installed", *words], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert said in re.sub(" +", " ", done.stdout)


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
