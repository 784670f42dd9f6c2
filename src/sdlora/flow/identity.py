"""What a run is, by name: settings, base, data, code and packages, so that a refusal can say what differs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.flow import freshness, hashing
from sdlora.flow.recipe import Values

Identity = dict[str, Any]
#: Names that an update of sdlora or of a package changes, and nobody's settings or data.
UPDATED = ("code", "software.", "entries")


def identity_of(values: Values, inputs: Sequence[Path]) -> Identity:
    """Every value of a recipe by its dotted name (`train.rank`), and the hash of each input (`dataset.flip`)."""
    named = _dotted(values)
    named |= {f"dataset.{path.stem}": freshness.outputs_identity(path) for path in inputs}
    return named


def is_update(names: Iterable[str]) -> bool:
    """Whether all that differs is what an update of sdlora or of a package changes, also of the stages before."""
    return all(name.removeprefix("training.").removeprefix("drawing_").startswith(UPDATED) for name in names)


def run_key(values: Values, inputs: Sequence[Path]) -> str:
    """Where the store keeps a training: what trains it and what its inputs are."""
    parts = [values, *map(freshness.outputs_identity, inputs)]
    return hashing.sha256_text(records.canonical_json(parts))[:32]


def section(identity: Identity, name: str) -> dict[str, Any]:
    """One section of the recipe, as it was before its names were dotted."""
    before = f"{name}."
    return nested({key.removeprefix(before): value for key, value in identity.items() if key.startswith(before)})


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"train.rank": 8}` with its sections: `{"train": {"rank": 8}}`."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return found


def differing(saved: Identity, wanted: Identity) -> list[str]:
    """Names whose values are not the same in both."""
    return [n for n in sorted({*saved, *wanted}) if saved.get(n) != wanted.get(n)]


def told(names: list[str], saved: Identity, wanted: Identity) -> str:
    """The differences in words, both values of each."""
    return "; ".join(f"{name} was {_short(saved.get(name))} and is {_short(wanted.get(name))}" for name in names)


def _short(value: Any) -> str:
    text = records.canonical_json(value).strip().replace("\n", "")
    return text if len(text) <= 40 else f"{text[:37]}..."


def _dotted(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            found |= _dotted(item, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = item
    return found
