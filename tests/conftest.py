"""Shared fixtures."""

import gc
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import stage_server
from helpers import Project, make_project

from sdlora import choices
from sdlora.config.params import Base
from sdlora.flow import code, store


@dataclass(frozen=True)
class Shared:
    """What the processes of a run share: its folder, and the process that began the run."""

    folder: Path
    runner: int

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """A folder of the run that the first process that asks makes, while the others wait."""
        folder, whole = self.folder / name / "made", self.folder / name / "whole"
        (self.folder / name).mkdir(exist_ok=True)
        with store.sole_use(self.folder / name, wait=True):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that was stopped
                make(folder)
                whole.touch()
        return folder


@pytest.fixture(scope="session", autouse=True)
def _each_file_of_code_once() -> None:
    """Plans of many folders parse the package once a process: what a file says depends on its bytes alone."""
    code._parse = cache(code._parse)


@pytest.fixture(scope="session", autouse=True)
def _nobody_waits_for_the_disk() -> None:
    """No test cuts the power: what was written is there for every process, on the disk or not."""
    os.fsync = lambda _: None


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    base = tmp_path_factory.getbasetemp()
    return Shared(base.parent, os.getppid()) if "PYTEST_XDIST_WORKER" in os.environ else Shared(base, os.getpid())


def client_of(shared: Shared, light: bool = False) -> Path:
    """The Python of the run's server, which is started where it was not."""

    def serve(folder: Path) -> None:
        folder.mkdir()
        stage_server.start(folder, shared.runner, light)

    return shared.once("s", serve) / "python"


@pytest.fixture(scope="session")
def served(shared: Shared) -> Path:
    """What runs projects' commands without importing libraries anew: one server for all tests, which ends with them."""
    return client_of(shared)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[Any]) -> None:
    """More workers than two are forks of the server, too: importing every library takes each 8 s of a core."""
    if len(specs) > 2 and sys.platform == "linux":
        folder: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        units = config.getoption("markexpr") == "unit"
        python = shlex.quote(str(client_of(Shared(folder, os.getpid()), light=units)))
        for spec in specs:
            spec.python = python if spec.popen else spec.python


@pytest.fixture(scope="session")
def built_once(served: Path, shared: Shared) -> Project:
    """A project with both versions made, by the first process of the run that asks; never changed by a test."""
    return Project(shared.once("built", lambda folder: make_project(folder, python=served).snakemake("all")), served)


@pytest.fixture
def built(built_once: Project, served: Path, tmp_path: Path) -> Project:
    """A copy of the built project, with its times kept."""
    shutil.copytree(built_once.folder, tmp_path / "project")
    return Project(tmp_path / "project", served)


@pytest.fixture
def fresh(served: Path, tmp_path: Path) -> Project:
    """A project in which nothing has run."""
    return make_project(tmp_path / "fresh", python=served)


# The files that take longest, in their order, so that no worker is left alone with one at the end.
LONGEST = (
    "test_slurm.py",
    "test_versioning.py",
    "test_workflow.py",
    "test_preflight.py",
    "test_fake_cuda.py",
    "test_menu.py",
    "test_kubernetes.py",
    "test_make.py",
    "test_scrape_dag.py",
    "test_search.py",
    "test_sd.py",
    "test_loop.py",
    "test_processes.py",
    "test_replay.py",
    "test_resume.py",
    "test_run.py",
    "test_hostile.py",
    "test_bench_train.py",
    "test_doors.py",
    "test_identity.py",
    "test_types.py",
    "test_compiled.py",
    "test_selenium.py",
    "test_drawing.py",
    "test_caches.py",
    # few tests, each of which is long: the file behind one waits for it
    "test_beside_a_card.py",
    "test_model_hub.py",
    "test_page.py",
    "test_page_controls.py",
    "test_choose_dag.py",
    "test_family_dag.py",
    "test_notebook.py",
    "test_without_dvc.py",
    "test_mutations.py",
    "test_allocator.py",
    "test_door.py",
    "test_dvc.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; the order within a file stays."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """A collection of what libraries and tests made on import takes half a second and finds nothing, each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Hypothesis' plugin, which then starts, asks the collector who refers to its objects."""
    gc.collect()  # of what tests left, whose errors are told
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    """pytest collects twice more."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_precision_a_test() -> None:
    """accelerate keeps its precision for the whole process; a stage runs only once in one."""
    if accelerate := sys.modules.get("accelerate.state"):
        accelerate.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _every_test_leaves_the_folder_it_found() -> Iterator[None]:
    """One that stays elsewhere breaks another, in another file, on some runs."""
    before = Path.cwd()
    yield
    assert Path.cwd() == before


@pytest.fixture(scope="session")
def small_sd() -> Base:
    from training import small_base  # imports diffusers: 5 s

    return small_base()


@pytest.fixture(scope="session")
def small_sd3(tmp_path_factory: pytest.TempPathFactory) -> Base:
    from shapes import save_small_sd3  # imports diffusers: 5 s

    return save_small_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture
def clip_skip_on_the_menu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family from outside the package, by its one line."""
    monkeypatch.setitem(choices.FAMILIES, "clip-skip", "toy_family:ClipSkip")


@pytest.fixture(scope="session")
def small_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Base:
    from shapes import save_small_sdxl  # imports diffusers: 5 s

    return save_small_sdxl(tmp_path_factory.mktemp("sdxl"))
