"""The notebook for Colab, run as it is on the embedded base; its settings and where it installs are the test's."""

import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT, SMALL, make_project
from nbclient import NotebookClient
from nbformat import NotebookNode
from rig import SCRIPT, Rig, Search, results

from sdlora import records
from sdlora.config.load import load

NOTEBOOK = ROOT / "notebooks/colab.ipynb"
QUERY = "pixel illustration"


def executed(folder: Path, kept: Path, served: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookNode:
    """Run all cells in a clone that is installed, whose web is `rig/` in it."""
    params = SMALL.replace("threads: 1", "scraping: false  # or true\nthreads: 1")
    project = make_project(folder, params, served, embedded_base=True)
    (folder / "workflow/scripts/scrape.py").write_text(SCRIPT, "utf-8")
    for path in (ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("requirements*.lock")):
        shutil.copy(path, folder)
    (folder / ".venv").mkdir()
    (folder / ".venv/installed").touch()
    for name, value in project.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))
    book = nbformat.read(NOTEBOOK, as_version=4)
    first = next(cell for cell in book.cells if cell.id == "settings")
    chosen = {
        "BASE": "tiny", "VERSION": "a", "HELD_OUT": 2, "PICTURES": str(folder / "data/embedded/small/train"),
        "QUERY": QUERY, "LIMIT": 3, "PROJECT": str(folder), "KEPT": str(kept),
    }  # fmt: skip
    assert all(f"\n{name} = " in f"\n{first.source}" for name in chosen)
    first.source += "".join(f"\n{name} = {value!r}" for name, value in chosen.items())
    done: NotebookNode = NotebookClient(book, timeout=600, kernel_name="python3", resources={}).execute(cwd=str(folder))
    return done


def said_by(book: NotebookNode, cell: str) -> str:
    (found,) = (one for one in book.cells if one.id == cell)
    return "".join(output.get("text", "") or output["data"].get("text/html", "") for output in found.outputs)


def test_the_notebook_trains_shows_its_page_and_goes_on_after_a_disconnect(
    tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "drive"
    with Rig(tmp_path / "first/rig", {QUERY: Search(results(range(9)))}) as web:
        book = executed(tmp_path / "first", kept, served, monkeypatch)
    assert web.requests("www.bing.com", "/images/") and not web.refused
    rows = records.read_jsonl(tmp_path / "first/data/sets/mine/manifest.jsonl")
    assert Counter(row["engine"] for row in rows) == {"folder": 4, "bing": 3}
    assert "torch" in said_by(book, "install") and "4 pictures" in said_by(book, "pictures")
    assert "iframe srcdoc=" in said_by(book, "page") and "&lt;html" in said_by(book, "page")
    lora = Path(said_by(book, "download").strip())
    assert lora == (kept / "results/a/a.safetensors").resolve() and lora.stat().st_size > 1000
    again = executed(tmp_path / "second", kept, served, monkeypatch)
    assert "Nothing to be done" in said_by(again, "train")
    assert Path(said_by(again, "download").strip()) == lora


def test_another_word_in_the_first_cell_is_taken_on_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = (cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.id == "pictures")
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(SMALL, "utf-8")
    given = {"kept": tmp_path, "PICTURES": "", "QUERY": "", "LIMIT": 3, "BASE": "tiny", "HELD_OUT": 2, "colab": None}
    for trigger in ("mispelt", "misspelt"):
        exec(cell, {"json": json, "re": re, "Path": Path, "TRIGGER": trigger, **given})
    params = load(Path("params.yaml"))
    assert params.datasets["mine"].trigger == "misspelt" and params.versions["a"].dataset == "mine"


def test_it_is_kept_without_outputs_and_holds_for_other_versions() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)


def test_another_torch_in_the_first_cell_is_installed_on_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make` knows what the environment has."""
    (cell,) = (cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.id == "install")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # the cell sets it, too
    project, index = tmp_path / "sdlora", "https://download.pytorch.org/whl/cu126"
    for folder in (".venv", "data"):
        (project / folder).mkdir(parents=True)
    for file in (project / "Snakefile", project / ".venv/installed"):
        file.touch()
    said: list[tuple[str, ...]] = []
    given = {
        "PROJECT": str(project), "KEPT": str(tmp_path / "kept"), "TORCH_INDEX": index, "colab": None,
        "run": lambda *words: said.append(words),
    }  # fmt: skip
    exec(cell, {"os": os, "shutil": shutil, "sys": sys, "Path": Path, **given})
    assert said[0] == ("make", ".venv/installed", f"PYTHON={sys.executable}", f"TORCH_INDEX={index}")
