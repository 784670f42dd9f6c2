"""What is searched: each key's values, by one spelling on the command line and in `study.yaml`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from itertools import product
from math import isfinite, log, prod
from typing import Any, get_args

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sdlora import records
from sdlora.config.params import Version
from sdlora.config.sections import Section
from sdlora.errors import ParamsError, suggest

#: Keys that no trial may state, and why.
NEVER = {
    "chosen": "a person's choice of a checkpoint is none of a search's",
    "remark": "it changes nothing",
    "lora": "nothing would be trained",
    "train.seeds": "a trial is trained once; train the best one several times",
    "evaluate.choose_by": "--by says what a trial is measured by",
    "evaluate.metrics": "--by says what a trial is measured by",
}
#: Keys that all trials must share, and why; a single value is fine.
SHARED = {
    "dataset": "they would be measured against other references",
    "fit.size_px": "they would be measured against references of another size",
    "fit.fill": "they would be measured against references padded otherwise",
    "sample.seeds": "they would be measured on other pictures",
    "sample.max_references": "they would be measured on other pictures",
    "sample.report_seeds": "no trial is measured on them",
    "evaluate": "they would be measured otherwise",
    "export": "nothing that is measured changes by it",
    "animate": "nothing that is measured changes by it",
}
DIGITS = 4  # of a number that is drawn from a range

Key = str  # dotted, such as train.rank


@dataclass(frozen=True)
class Range:
    """Numbers from low to high."""

    low: float
    high: float
    whole: bool
    log: bool = False
    step: float | None = None

    @property
    def text(self) -> str:
        """As it is written."""
        further = ":log" if self.log else "" if self.step is None else f":step={self.step:g}"
        return f"{self.low!r}..{self.high!r}{further}"

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that are tried for being allowed at all."""
        return (self.low, self.high)

    @property
    def values(self) -> tuple[float, ...] | None:
        """All that it has, where these are numbers one by one."""
        if not self.whole and self.step is None:
            return None
        step = self.step or 1
        return tuple(self.round(self.low + n * step) for n in range(int((self.high - self.low) / step + 1e-9) + 1))

    def round(self, value: float) -> float:
        """A number that a person can read, still in the range."""
        if self.whole:
            return int(value)
        if self.step is not None:
            return float(f"{value:.12g}")
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def holds(self, value: Any) -> bool:
        """Whether a value is in it, and with a step on its grid."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and (self.step is None or value in (self.values or ()))

    def place(self, value: Any) -> float:
        """Where a value lies between the ends, 0 to 1."""
        scale: Callable[[float], float] = log if self.log else float
        return float((scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low)))


@dataclass(frozen=True)
class Values:
    """A list of values."""

    values: tuple[Any, ...]

    @property
    def text(self) -> str:
        """As it is written."""
        return ", ".join(map(spelt, self.values))

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that are tried for being allowed at all."""
        return self.values

    @property
    def categories(self) -> list[Any]:
        """The values as Optuna keeps them: what is no scalar by its text."""
        return [value if isinstance(value, str | int | float | None) else spelt(value) for value in self.values]

    def index(self, value: Any) -> int:
        """Which of them a value is."""
        return [spelt(one) for one in self.values].index(spelt(value))

    def place(self, value: Any) -> float:
        """Where a value lies in the list, 0 to 1."""
        return self.index(value) / max(len(self.values) - 1, 1)


Axis = Range | Values


@dataclass(frozen=True)
class Space:
    """Every key that a search states."""

    axes: dict[Key, Axis]

    @property
    def varied(self) -> dict[Key, Axis]:
        """Those that differ between trials."""
        return {key: axis for key, axis in self.axes.items() if len(axis.ends) > 1}

    @property
    def fixed(self) -> dict[Key, Any]:
        """Those that all trials share."""
        return {key: axis.ends[0] for key, axis in self.axes.items() if len(axis.ends) == 1}

    @property
    def combinations(self) -> int | None:
        """How many trials can differ; None where a key takes any number of a range."""
        lists = [axis.values for axis in self.varied.values()]
        return None if None in lists else prod(len(values or ()) for values in lists)

    def every(self) -> Iterator[dict[Key, Any]]:
        """The trials that can differ, where they can be counted; otherwise none."""
        if self.combinations is not None:
            for values in product(*(axis.values or () for axis in self.varied.values())):
                yield dict(zip(self.varied, values, strict=True))

    @property
    def texts(self) -> dict[Key, str]:
        """What was written, in one spelling."""
        return {key: axis.text for key, axis in self.axes.items()}


def spelt(value: Any) -> str:
    """A value as YAML reads it."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    return records.compact_json(value).strip()


def as_yaml(values: Mapping[str, Any]) -> str:
    """Settings as a person writes them: what has no section in it on one line."""
    writer, text = YAML(typ="safe", pure=True), StringIO()
    writer.default_flow_style, writer.width = None, 116
    writer.dump(records.parse_json(records.compact_json(dict(values))), text)
    return text.getvalue()


def space_of(settings: Mapping[Key, str | Sequence[Any]], grid: bool) -> Space:
    """Read what is searched.

    Args:
        settings: Key -> `8,16,32`, `1e-5..1e-3:log`, `100..900:step=100`, or a list.
        grid: Whether every combination is tried, which takes lists.

    Raises:
        ParamsError: If a key is unknown or may not be searched, or its values are none that it takes.
    """
    known = dict(_keys(Version))
    for key in settings:
        _check_key(key, known)
    # in an order of their own: what is drawn depends on it, and a file may have another than the command line
    space = Space({key: _axis(key, settings[key], known[key]) for key in sorted(settings)})
    for key, axis in space.varied.items():
        _check_shared(key, axis)
        if grid and isinstance(axis, Range):
            raise ParamsError(f"{key}: a grid takes lists, and {axis.text} is a range")
    for outer in settings:
        for inner in settings:
            if inner.startswith(f"{outer}."):
                raise ParamsError(f"{outer} holds {inner}: set one of them")
    if not space.varied:
        raise ParamsError("nothing is searched: every key has one value")
    return space


def value_at(settings: Mapping[str, Any], key: Key) -> Any:
    """What `nested` settings say of a key."""
    found: Any = settings
    for part in key.split("."):
        found = found[part]
    return found


def _check_shared(key: Key, axis: Axis) -> None:
    """Refuse what would have trials differ in what they share, also where a section's values hide it."""
    for shared, why in SHARED.items():
        if f"{key}.".startswith(f"{shared}."):
            raise ParamsError(f"{key} cannot differ between trials: {why}; give it one value")
        if shared.startswith(f"{key}.") and len({_within(value, shared, key) for value in axis.ends}) > 1:
            raise ParamsError(f"{shared} cannot differ between trials: {why}; give each {key} the same, or none")


def _within(section: Any, key: Key, above: Key) -> str:
    """What a section, which is a value of the key above, says of a key; nothing where it does not."""
    for part in key.removeprefix(f"{above}.").split("."):
        if not isinstance(section, Mapping) or part not in section:
            return ""
        section = section[part]
    return spelt(section)


def _keys(section: type[Section], before: str = "") -> Iterator[tuple[Key, set[type]]]:
    """Every key of a version, and the types that it may have."""
    for name, field in section.model_fields.items():
        kinds = set(_kinds(field.annotation))
        yield f"{before}{name}", kinds
        for kind in kinds:
            if issubclass(kind, Section) and name != "lora":
                yield from _keys(kind, f"{before}{name}.")


def _kinds(annotation: Any) -> Iterator[type]:
    """The types in an annotation; what a tuple or a dictionary holds is not the key's own."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    elif getattr(annotation, "__origin__", None) not in (tuple, dict):
        for part in get_args(annotation):
            yield from _kinds(part)


def _check_key(key: Key, known: Mapping[Key, set[type]]) -> None:
    if key not in known:
        ends = {name: name.rpartition(".")[2] for name in known}
        last = get_close_matches(key.rpartition(".")[2], ends.values(), n=1)
        exact = [name for name, end in ends.items() if end == key]  # `rank` for `train.rank`
        near = [name for name, end in ends.items() if last and end == last[0]]
        found = exact or get_close_matches(key, known, n=1) or near[:1]
        meant = f"; did you mean {' or '.join(found)}?" if found else suggest(key, Version.model_fields)
        raise ParamsError(f"{key} is no key of a version{meant}")
    if key in NEVER:
        raise ParamsError(f"{key} cannot be searched: {NEVER[key]}")


def _axis(key: Key, written: str | Sequence[Any], kinds: set[type]) -> Axis:
    if isinstance(written, str) and _is_range(written):
        return _range(key, written, kinds)
    values = tuple(_listed(key, written) if isinstance(written, str) else written)
    if not values:
        raise ParamsError(f"{key}: the list of values is empty")
    for value in values:
        if not isinstance(value, str | int | float | tuple | list | dict | None):  # a date, which no key takes
            raise ParamsError(f"{key}: {value} is a {type(value).__name__} to YAML; as a text it wants quotes")
    if len({spelt(value) for value in values}) < len(values):
        raise ParamsError(f"{key}: {Values(values).text} names a value twice")
    return Values(values)


def _is_range(text: str) -> bool:
    low, dots, _ = text.partition("..")
    return bool(dots) and _number(low) is not None


def _range(key: Key, text: str, kinds: set[type]) -> Range:
    if not kinds & {int, float}:
        raise ParamsError(f"{key}: {text} is a range, but the key takes no numbers; give a list")
    ends, _, how = text.partition(":")
    low, high = (_number(end) for end in ends.split("..", 1))
    step = _number(how.removeprefix("step=")) if how.startswith("step=") else None
    if low is None or high is None or (how not in ("", "log") and step is None):
        raise ParamsError(f"{key}: {text} is no range; write 4..64, 1e-5..1e-3:log or 100..900:step=100")
    if low >= high:
        raise ParamsError(f"{key}: {text} is empty: {low:g} is not below {high:g}")
    if how == "log" and low <= 0:
        raise ParamsError(f"{key}: {text} begins at {low:g}, which has no logarithm")
    if step is not None and not 0 < step <= high - low:
        raise ParamsError(f"{key}: {text} has no step between its ends")
    whole = float not in kinds
    if whole and any(number is not None and number != int(number) for number in (low, high, step)):
        raise ParamsError(f"{key}: {text} has fractions, but the key takes whole numbers")
    cast = int if whole else float
    return Range(cast(low), cast(high), whole, how == "log", None if step is None else cast(step))


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if isfinite(found) else None


def _listed(key: Key, text: str) -> list[Any]:
    """Values that are written as in a YAML list."""
    try:
        found = YAML(typ="safe", pure=True).load(f"[{text}]")
    except YAMLError:
        raise ParamsError(f"{key}: {text!r} is no list of values; write 8,16,32") from None
    return [_frozen(value) for value in found]


def _frozen(value: Any) -> Any:
    """A value as the settings have it: no lists."""
    if isinstance(value, list):
        return tuple(_frozen(one) for one in value)
    return {str(key): _frozen(one) for key, one in value.items()} if isinstance(value, dict) else value
