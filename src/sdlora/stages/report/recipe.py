"""What the stage `report` is asked to do: a version's page, and the page over all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sdlora.flow.recipe import Recipe

OWN_PAGE = "report/index.html"  # below a version's folder
BEST = "best"  # there, too: the chosen step's pictures
Summary = dict[str, Any]  # the settings a reader compares versions by


class ReportRecipe(Recipe):
    """Write a version's page."""

    stage: ClassVar[str] = "report"
    folder_pattern: ClassVar[str] = "results/{version}"
    writes: ClassVar[tuple[str, ...]] = (OWN_PAGE, "report/sheet.png", f"{BEST}/", "{version}.safetensors")
    shown: ClassVar[dict[str, str]] = {"report/sheet.png": "sheet.rst"}
    asides: ClassVar[frozenset[str]] = frozenset({"references", "dataset", "folders"})
    later: ClassVar[Mapping[str, Any]] = {"votes": None, "average": False}

    version: str
    settings: Summary
    average: bool  # whether pictures are drawn with the average of the LoRA, which then is the one to publish
    references: Path  # the fitted set that holds them
    dataset: Path  # the fitted set that was learnt from
    folders: tuple[Path, ...]  # the user's own, among its sources
    votes: str | None  # what people voted: the hash of votes.jsonl


class ReportAllRecipe(Recipe):
    """Write the page over all versions of `run`."""

    stage: ClassVar[str] = "report"
    script: ClassVar[str] = "report_all"
    folder_pattern: ClassVar[str] = "results/report"
    writes: ClassVar[tuple[str, ...]] = ("index.html", "versions.csv")
    shown: ClassVar[dict[str, str]] = {"index.html": "index.rst"}
    asides: ClassVar[frozenset[str]] = frozenset({"references", "datasets", "folders"})
    later: ClassVar[Mapping[str, Any]] = {"votes": None, "trainings": {}}

    versions: dict[str, Summary]
    references: dict[str, Path]  # the fitted set that holds each version's
    datasets: dict[str, Path]  # the fitted set that each learnt from
    folders: dict[str, tuple[Path, ...]]  # the user's own, among the sources of each one's dataset
    votes: str | None  # what people voted: the hash of votes.jsonl
    trainings: dict[str, tuple[str, ...]]  # of versions that are trained several times: theirs, by version
