"""What the stage `studies` is asked to do."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from sdlora import records
from sdlora.config.params import StudiedParams
from sdlora.config.studies import BASE
from sdlora.flow.identity import identity_of
from sdlora.flow.recipe import Recipe


class Compared(BaseModel):
    """A claim, and the trainings of the two versions that it compares."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    says: str
    source: str
    changed: str  # in words
    better: tuple[str, ...]  # metrics
    same: tuple[str, ...]
    without: tuple[str, ...]  # trainings of the start; none: the changed version's base
    changed_to: tuple[str, ...]  # trainings of the changed version

    @property
    def starts_from(self) -> str:
        """The version that is changed, or whose base is."""
        return (self.without or self.changed_to)[0]


class StudiesRecipe(Recipe):
    """Say of each claim what was measured."""

    stage: ClassVar[str] = "studies"
    folder_pattern: ClassVar[str] = "results/studies"
    writes: ClassVar[tuple[str, ...]] = ("findings.csv", "findings.md")

    compared: tuple[Compared, ...]
    starts: dict[str, dict[str, Any]]  # the settings of each version that changes start from


def compared_of(params: StudiedParams) -> tuple[Compared, ...]:
    """The claims of `studies.yaml`, with the trainings that each compares."""
    found = []
    for name, claim in params.studies.claims.items():
        start, changed = params.compared[name]
        without = () if start == BASE else params.trainings(start)
        change = identity_of(claim.change, []).items()
        said = ", ".join(f"{key}: {records.compact_json(value).strip()}" for key, value in change)
        found.append(
            Compared(
                name=name, says=claim.says, source=claim.source, changed=said or "the LoRA", better=claim.better,
                same=claim.same, without=tuple(without), changed_to=tuple(params.trainings(changed)),
            )
        )  # fmt: skip
    return tuple(found)
