"""Why a value is refused, in the words of the file: pydantic's own are of tuples, instances and tags."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from sdlora.config.params import SECTIONS, Params, Version
from sdlora.config.sections import NAME, Section
from sdlora.config.sources import REPOSITORY
from sdlora.errors import suggest

Place = tuple[str | int, ...]
#: What holds sections under names of the user's, and what each of these sections is.
NAMED: dict[str, type[Section]] = {
    **{key: SECTIONS[key] for key in ("versions", "datasets", "bases", "claims")},
    "presets": Version,
}
STAGES: dict[str, type[Section]] = {
    key: SECTIONS[key] for key in Version.model_fields if key in SECTIONS and key != "lora"
}
KINDS = [key for key, section in SECTIONS.items() if "kind" in section.model_fields]  # of sources
_PATTERNS = {
    NAME: "a name has letters from a to z, digits, '.', '_' and '-', and begins with a letter or a digit",
    REPOSITORY: "owner/name is wanted, as the dataset's address on the hub ends",
}


def reason(item: Mapping[str, Any], place: Place, fields: list[str] | None = None) -> str:
    """Why a value is refused.

    Args:
        item: pydantic's mistake.
        place: Its keys from the top of `params.yaml` on.
        fields: The keys that would have been valid, where it is no place of `params.yaml`.
    """
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        return f"unknown key{instead(place, value, fields)}"
    if kind == "missing":
        return "is missing"
    said = _said(item, place)
    shown = "" if isinstance(value, dict) or kind == "value_error" else f"{written(value)} is not allowed: "
    return shown + said


def written(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def _said(item: Mapping[str, Any], place: Place) -> str:
    kind, value = item["type"], item["input"]
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return _section_wanted(value, [key for key in place if isinstance(key, str)])
    if kind == "tuple_type":
        simple = isinstance(value, str | int | float)
        return f"a list is wanted: [{written(value)}]" if simple else "a list is wanted: [ and ] around it"
    if kind in ("int_type", "float_type"):
        return _number_wanted(value, "a whole number" if kind == "int_type" else "a number")
    if kind == "string_type":
        return f"a text is wanted: '{written(value)}'" if isinstance(value, int | float) else "a text is wanted"
    return _said_of(item)


def _said_of(item: Mapping[str, Any]) -> str:
    """Of a value whose type may be right."""
    kind, context = item["type"], item.get("ctx", {})
    if kind == "string_pattern_mismatch" and context["pattern"] in _PATTERNS:
        return _PATTERNS[context["pattern"]]
    message = str(item["msg"]).removeprefix("Value error, ")
    words = {
        "bool_type": "write true or false",
        "too_short": f"at least {context.get('min_length')} wanted",
        "too_long": f"at most {context.get('max_length')} wanted",
        "union_tag_not_found": f"kind is missing; choices: {', '.join(KINDS)}",
        "union_tag_invalid": f"kind is {context.get('tag')!r}{suggest(str(context.get('tag')), KINDS)}",
    }
    return words.get(kind, message[0].lower() + message[1:])


def _section_wanted(value: Any, place: list[str]) -> str:
    key = place[-1] if place else ""
    keys = _keys(SECTIONS[key]) if key in SECTIONS else []
    said = f"a section is wanted, with keys such as {', '.join(keys[:4])}" if keys else "a section is wanted"
    if key == "sources":
        said += ", such as {kind: folder, path: data/mine}"
    if isinstance(value, bool):
        return f"{said}; {'{} has the default of each' if value else 'null is none'}"
    if isinstance(value, str) and ":" in value:
        return f"{said}; a space belongs behind the colon"
    return f"{said}; to state nothing, leave it out" if value is None else said


def _number_wanted(value: Any, what: str) -> str:
    if isinstance(value, float) and value.is_integer():
        return f"{what} is wanted: {int(value)}"
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return f"{what} is wanted"
        return f"{what} is wanted: {value}, without quotes"
    return f"{what} is wanted"


def instead(place: Place, value: Any, fields: list[str] | None = None) -> str:
    """What may have been meant by an unknown key, whose place ends with it."""
    key, known = str(place[-1]), fields_at(place[:-1]) if fields is None else fields
    homes = [stage for stage, section in STAGES.items() if key in section.model_fields and known != _keys(section)]
    if homes and "train" in known:  # the keys of a version
        return f"; it belongs below {' or '.join(homes)}"
    if len(place) == 1 and isinstance(value, dict):
        shared = {above: len(value.keys() & {*_keys(NAMED[above])}) for above in ("versions", "datasets", "bases")}
        above = max(shared, key=lambda name: shared[name])
        if shared[above]:
            return f"; did you mean to indent it, below {above}?"
    if homes and not get_close_matches(key, known, n=1, cutoff=0.85):
        return f"; it belongs below {' or '.join(homes)}"
    return suggest(key, known)


def _keys(section: type[Section]) -> list[str]:
    return [*section.model_fields]


def fields_at(place: Place) -> list[str]:
    """Keys that are valid at a location: those of the innermost section; a version may be called as a section is."""
    for index in reversed(range(len(place))):
        above = str(place[index - 1]) if index else ""
        if above in NAMED:
            return [*_keys(NAMED[above]), *(["defaults"] if above == "bases" else [])]
        if place[index] in SECTIONS:
            return _keys(SECTIONS[str(place[index])])
    return [*Params.model_fields, "defaults"]
