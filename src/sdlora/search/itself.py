"""Where a search begins: the version that its trials are like, if what it has of the searched keys is among them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdlora.config.search import Trial
from sdlora.errors import ParamsError
from sdlora.flow import plan
from sdlora.search.space import Axis, Key, Range, spelt

if TYPE_CHECKING:
    from sdlora.search.run import Search


@dataclass(frozen=True)
class Itself:
    """The version as a trial."""

    like: str  # the version
    params: dict[Key, Any] | None  # what it has of the keys that differ between trials; None where one lies outside
    why_not: str  # the keys that lie outside, in words; empty where none does
    changed: tuple[Key, ...]  # keys that all trials share with each other, and not with the version

    def named(self, params: Mapping[Key, Any]) -> str:
        """What a trial is called, if it is this one; otherwise nothing."""
        if params != self.params:
            return ""
        return f"{self.like} but for {', '.join(self.changed)}" if self.changed else f"{self.like} itself"

    def is_version(self, params: Mapping[Key, Any]) -> bool:
        """Whether a trial is the version in all that trains it."""
        return params == self.params and not self.changed


def itself(search: "Search") -> Itself:
    """What a search's version is among its trials: a function of the study and of `params.yaml`."""
    like, version = search.study.like, _meant(search, {})
    held = {key: _held(search, version, key, axis) for key, axis in search.space.varied.items()}
    outside = [
        f"{key} {spelt(_value(version, key))} is not {'in' if isinstance(axis, Range) else 'among'} {axis.text}"
        for key, axis in search.space.varied.items()
        if not held[key]
    ]
    params = None if outside else {key: value for key, (value,) in held.items()}
    changed = tuple(key for key, value in search.space.fixed.items() if not _is_own(search, version, key, value))
    return Itself(like, params, f"{like}'s {' and '.join(outside)}" if outside else "", changed)


def _held(search: "Search", version: Trial, key: Key, axis: Axis) -> list[Any]:
    """The version's own value of a key as the search has it; empty if it lies outside."""
    if isinstance(axis, Range):
        value = _value(version, key)
        return [value] if axis.holds(value) else []
    return [value for value in axis.values if _is_own(search, version, key, value)][:1]


def _is_own(search: "Search", version: Trial, key: Key, value: Any) -> bool:
    """Whether the version is the same with a value stated: `{factor: 1.5}` leaves the rest to what lies below."""
    try:
        return _meant(search, {key: value}) == version
    except ParamsError:  # it goes only with other settings
        return False


def _meant(search: "Search", settings: Mapping[Key, Any]) -> Trial:
    """The version with some settings over its own, and every null of its training replaced by what it means."""
    found = search.resolved(settings)
    base = search.params.bases.get(found.base)  # a name that no base has is told elsewhere
    return found if base is None else found.model_copy(update={"train": plan.resolved_train(found.train, base)})


def _value(version: Trial, key: Key) -> Any:
    """What a version has of a key; None, too, where its section is not there."""
    found: Any = version.model_dump(mode="json")
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
