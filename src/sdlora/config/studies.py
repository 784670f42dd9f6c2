"""What write-ups say of settings, and how each sentence is put to the test: `studies.yaml` beside `params.yaml`.

A study is two versions that differ in one thing. The file is read when studies are asked for, and by the command
`sdlora`; what a claim states are settings as a version has them, which `load.py` checks as such.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdlora import choices
from sdlora.config.sections import Name, ProblemAt, Section, each_once, merge, on_menu

FILE = Path("studies.yaml")
BASE = "base"  # in the place of a version: the other one without its LoRA
START = "study-start"  # the version that studies share
#: What no study may state: it trains, the rule chooses, and `seeds` counts for all.
NEVER = ("lora", "chosen", "train.seeds")
#: What both sides must have in common; and a preset lies below what the start states.
SHARED = ("preset", "base", "dataset", "fit.size_px", "fit.fill", "evaluate", "sample.seeds", "sample.report_seeds",
          "sample.max_references")  # fmt: skip


class Claim(Section):
    """One sentence of a write-up, and what puts it to the test."""

    says: str = Field(min_length=1, max_length=500, description="the sentence, as the write-up has it")
    source: str = Field(min_length=1, max_length=100, description="which write-up, in words")
    start: dict[str, Any] = Field(
        {}, description="settings of this claim's own start, over the common one, as a version states them"
    )
    change: dict[str, Any] = Field({}, description="settings that are changed, in the same form")
    against: Literal["start", "base"] = Field(
        "start", description="what the changed version is compared with: the start, or itself without its LoRA"
    )
    better: tuple[str, ...] = Field((), description="metrics that are better with the change, if the claim holds")
    same: tuple[str, ...] = Field((), description="metrics that the change leaves as they are, if it does")

    @field_validator("better", "same")
    @classmethod
    def _known_metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(on_menu(name, choices.METRICS) for name in value)

    @model_validator(mode="after")
    def _can_be_tested(self) -> Self:
        metrics = [*self.better, *self.same]
        if not metrics:
            raise ValueError("better and same are empty: name the metrics that the claim is about")
        each_once("the claim, in better and same,", metrics)
        if not self.change and self.against == "start":
            raise ValueError("change is empty: say what differs, or `against: base`")
        _refuse("start", self.start, NEVER, "no study states it")
        _refuse("change", self.change, NEVER, "no study states it")
        _refuse("change", self.change, SHARED, "both sides of a comparison have it in common: it belongs into start")
        return self


class Studies(Section):
    """All of `studies.yaml`: what write-ups claim, and what it is tested on."""

    seeds: int = Field(3, ge=2, le=20, description="trainings of each version, with seed, seed + 1, ...")
    start: dict[str, Any] = Field(description="what every study starts from: settings as a version states them")
    claims: dict[Name, Claim] = Field(min_length=1, description="the studies by name: see claims")

    @model_validator(mode="after")
    def _start_is_trained(self) -> Self:
        _refuse("start", self.start, NEVER, "no study states it")
        versions_of(self)
        return self


def _refuse(section: str, block: Mapping[str, Any], keys: Iterable[str], why: str) -> None:
    for dotted in keys:
        *above, key = dotted.split(".")
        node: Any = block
        for name in above:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict) and key in node:
            raise ValueError(f"{section} states {dotted}, but {why}")


def versions_of(studies: Studies) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, str]]]:
    """The versions that studies compare.

    Returns:
        What each states, over the defaults, by its name: equal settings are one version. And of each claim the two
        that it compares, the changed one last; `base` in the place of the first.

    Raises:
        ValueError: If a change changes nothing, or two versions would have one name.
    """
    stated: dict[str, dict[str, Any]] = {START: studies.start}
    compared = {}

    def version(name: str, settings: dict[str, Any]) -> str:
        same = next((known for known, other in stated.items() if other == settings), name)
        if stated.setdefault(same, settings) != settings:
            raise ValueError(f"two versions would be called {same}: give a claim another name")
        return same

    for name, claim in studies.claims.items():
        start = merge(studies.start, claim.start)
        without = BASE if claim.against == "base" else version(f"study-{name}-start", start)
        changed = version(f"study-{name}", merge(start, claim.change))
        if without == changed:
            raise ProblemAt(("claims", name, "change"), "it changes nothing of its start")
        compared[name] = (without, changed)
    return stated, compared
