"""A study's table and page: what every trial came to, what mattered, and how far the best of them may be believed."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sdlora import records
from sdlora.config.load import written_out
from sdlora.search.journal import Outcome
from sdlora.search.space import Range, as_yaml, spelt
from sdlora.stages.evaluate.tables import is_tested

if TYPE_CHECKING:
    from sdlora.search.run import Search

RESULTS = Path("results/searches")
WIDTH, HEIGHT, EDGE = 900, 300, 60  # of a drawing
FENCE = 3.0  # interquartile ranges beyond a quartile, from which a value is far out (Tukey 1977)
SAID_ELSEWHERE = ("version", "without_lora")  # on the page: below its table, and in its drawings
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A trial as a line over the axes of the drawing of coordinates."""

    points: str
    title: str
    share: float | None  # 0 the worst finished trial, 1 the best; None was given up


@dataclass(frozen=True)
class Dot:
    """A trial in the drawing of the study's course."""

    x: float
    y: float
    title: str
    finished: bool
    itself: bool  # the version that the search is like
    beyond: bool  # its value lies outside of the drawing


@dataclass(frozen=True)
class Scale:
    """An axis of the drawing of coordinates: its place, and the texts at their heights."""

    name: str
    x: float
    ticks: list[tuple[float, str]]


def write(search: "Search") -> None:
    """Write `trials.csv` and `index.html` below `results/searches/<name>`."""
    from sdlora.stages.report.page import PAGES, read_part, vendored  # imports NumPy

    out = RESULTS / search.name
    journal, by = search.journal, str(search.study.by)
    told, best = journal.told, journal.best()
    table = rows(search, told)
    records.write_csv(out / "trials.csv", [*columns(search)], [[row[key] for key in columns(search)] for row in table])
    low, high = _ends(told, search.maximise)
    names = {str(one.number): search.itself.named(one.params) for one in told}
    text = PAGES.get_template("search.html").render(
        title=f"Search {search.name}",
        styles=Markup(read_part("templates/page.css")),  # noqa: S704 - ours, as the next
        script=Markup(vendored("tablesort")),  # noqa: S704
        columns=[key for key in columns(search) if key not in SAID_ELSEWHERE], rows=table, by=by,
        best=best, verdict=[_as_html(line) for line in verdict(search).splitlines()],
        lines=lines(search, best) if best else "",
        asked={**search.space.texts}, study=search.study, better="higher" if search.maximise else "lower",
        importances=journal.importances(), width=WIDTH, height=HEIGHT, edge=EDGE,
        dots=_dots(search, told, low, high), itself=next(filter(None, names.values()), ""),
        course=_course(told, search.maximise, low, high),
        base=_base(told, low, high), outside=_outside(told, low, high),
        ends=[(_height(end, low, high), f"{end:.4g}") for end in (low, high)],
        scales=_scales(search, low, high), coordinates=_coordinates(search, told, low, high),
        name_of=search.trial_name, names=names, sortable=_sortable,
    )  # fmt: skip
    records.write_text(out / "index.html", text)


def _sortable(value: object) -> str:
    """A number without an exponent, which Tablesort does not read; empty for what is none."""
    with suppress(ValueError):
        if isfinite(found := float(str(value))):
            return f"{found:.20f}"
    return ""


def columns(search: "Search") -> list[str]:
    """Of the table: what a trial was, tried and came to."""
    on_the_way = [f"at_{step}" for step in search.study.prune_at or ()]
    values = (str(search.study.by), "step", *on_the_way, "without_lora", "came_to")
    return ["trial", "version", *search.space.varied, *values]


def rows(search: "Search", told: Sequence[Outcome]) -> list[dict[str, str]]:
    """One a trial."""
    found = []
    for one in told:
        passed = one.on_the_way or {}
        row = {"trial": str(one.number), "version": search.trial_name(one.number)}
        row |= {key: spelt(value) for key, value in one.params.items()}
        row |= {str(search.study.by): _figure(one.value), "step": str(one.chosen or "")}
        row |= {f"at_{step}": _figure(passed.get(step)) for step in search.study.prune_at or ()}
        found.append({**row, "without_lora": _figure(one.base), "came_to": one.why or "its end"})
    return found


def lines(search: "Search", best: Outcome) -> str:
    """The best trial as a version of `params.yaml`; none where that has it already."""
    if search.itself.is_version(best.params):
        return ""
    version = written_out(search.raw, search.known, search.trial_name(best.number))
    text = as_yaml({f"{search.name}-best": version})
    return "".join(f"  {line}\n" for line in text.splitlines())


def verdict(search: "Search") -> str:
    """What is said at the end, and first on the page."""
    told, best = search.journal.told, search.journal.best()
    finished = [one for one in told if one.value is not None]
    if best is None:
        return f"none of {len(told)} trials has come to its end"
    found = [
        f"Best of {len(told)} trials ({len(finished)} came to their end): trial {best.number}, {best.tried}: "
        f"{search.study.by} {_figure(best.value)} at step {best.chosen}, {_figure(best.base)} without a LoRA",
        f"The best of {len(finished)} is also the luckiest of them: {_figure(best.value)} is the number that chose it, "
        "from one training, on the references that choose. Expect less of it elsewhere.",
    ]
    if best.base is not None and best.value is not None and (best.value <= best.base) == search.maximise:
        found.append("No trial is better than no LoRA.")
    tested = Path("results") / search.trial_name(best.number) / "best.json"
    if tested.exists():
        found.append(_tested(records.read_json(tested), str(search.study.by)))
    if search.itself.is_version(best.params):
        found.append(f"It is {search.study.like} itself: no trial is better, and params.yaml may stay as it is.")
        return "\n".join(found)
    found.append(
        f"Train it with other seeds before it is believed: put these lines below versions in params.yaml, say "
        f"`snakemake results/{search.name}-best/metrics.csv`, and compare with `sdlora compare {search.name}-best "
        f"{search.study.like}`. The training with the trial's own seed is in the store."
    )
    return "\n".join(found)


def _as_html(line: str) -> Markup:
    """A line for a terminal as HTML: what stands between backquotes is a command."""
    parts = enumerate(line.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else part for n, part in parts)


def _tested(best: Mapping[str, Any], by: str) -> str:
    """What the references say that no trial was chosen by."""
    if not is_tested(best):
        return "There are no other references to test it on: hold out ten or more."
    figures = best["test"]["figures"][by]
    return (
        f"On the {len(best['test']['references'])} test references, which the search has not looked at: {by} "
        f"{figures['best']:g}, {figures['delta']:+g} against no LoRA, 95 % interval [{figures['ci_low']:g}, "
        f"{figures['ci_high']:g}]."
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _values(told: Sequence[Outcome]) -> list[float]:
    return [one.value for one in told if one.value is not None]


def _last(one: Outcome) -> float | None:
    """The value, or the last one before a trial was given up."""
    passed = one.on_the_way or {}
    return one.value if one.value is not None else passed[max(passed)] if passed else None


def _ends(told: Sequence[Outcome], maximise: bool) -> Point:
    """The lowest and the highest value that is drawn: beside the base or a burnt trial, all would lie on one line.

    Values far on the bad side (Tukey's outer fence: three interquartile ranges beyond the quartile) are left out.
    """
    found = sorted(value for value in map(_last, told) if value is not None) or [0.0, 1.0]
    first, _, third = quantiles(found, n=4, method="inclusive") if len(found) > 1 else (found[0],) * 3
    reach = FENCE * (third - first)
    kept = [value for value in found if (value >= first - reach if maximise else value <= third + reach)]
    low, high = min(kept), max(kept)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _height(value: float, low: float, high: float) -> float:
    """Of a value in a drawing; of one outside, that of the edge."""
    within = min(max(value, low), high)
    return round(HEIGHT - EDGE / 2 - (within - low) / (high - low) * (HEIGHT - EDGE), 1)


def _across(number: int, count: int) -> float:
    return round(EDGE + number / max(count - 1, 1) * (WIDTH - 2 * EDGE), 1)


def _said(search: "Search", one: Outcome) -> str:
    name = search.itself.named(one.params)
    return f"trial {one.number}{name and f' ({name})'}: {one.tried}: {one.why or _figure(one.value)}"


def _dots(search: "Search", told: Sequence[Outcome], low: float, high: float) -> list[Dot]:
    """Every trial that was measured at all."""
    found = []
    for one in told:
        if (value := _last(one)) is not None:
            x, y = _across(one.number, len(told)), _height(value, low, high)
            itself, beyond = bool(search.itself.named(one.params)), not low <= value <= high
            found.append(Dot(x, y, _said(search, one), one.value is not None, itself, beyond))
    return found


def _course(told: Sequence[Outcome], maximise: bool, low: float, high: float) -> str:
    """The best so far, as the points of a line with steps."""
    better, points, best = max if maximise else min, [], None
    for one in told:
        if one.value is None:
            continue
        x = _across(one.number, len(told))
        if best is not None:
            points.append((x, _height(best, low, high)))
        best = one.value if best is None else better(best, one.value)
        points.append((x, _height(best, low, high)))
    return " ".join(f"{x},{y}" for x, y in points)


def _base(told: Sequence[Outcome], low: float, high: float) -> float | None:
    """How high the line of the base without a LoRA lies, if it is among the trials."""
    found = [one.base for one in told if one.base is not None and low <= one.base <= high]
    return _height(found[0], low, high) if found else None


def _outside(told: Sequence[Outcome], low: float, high: float) -> str:
    """Where the base is that does not lie among the trials."""
    found = [one.base for one in told if one.base is not None]
    if not found or low <= found[0] <= high:
        return ""
    return f"no LoRA: {found[0]:.4g}, {'above' if found[0] > high else 'below'}"


def _scales(search: "Search", low: float, high: float) -> list[Scale]:
    varied = search.space.varied
    count = len(varied) + 1
    found = []
    for number, (key, axis) in enumerate(varied.items()):
        ticks = [(_height(axis.place(value), 0, 1), spelt(value)) for value in axis.ends]
        name = f"{key} (log)" if isinstance(axis, Range) and axis.log else key
        found.append(Scale(name, _across(number, count), ticks))
    ticks = [(_height(end, low, high), f"{end:.4g}") for end in (low, high)]
    return [*found, Scale(str(search.study.by), _across(count - 1, count), ticks)]


def _coordinates(search: "Search", told: Sequence[Outcome], low: float, high: float) -> list[Line]:
    """Every measured trial over its keys and its value, the best ones last, so that they lie above."""
    ranked = sorted(_values(told), reverse=not search.maximise)
    found = []
    for one in told:
        value = _last(one)
        if value is None:
            continue
        heights = [_height(axis.place(one.params[key]), 0, 1) for key, axis in search.space.varied.items()]
        heights.append(_height(value, low, high))
        points = " ".join(f"{_across(number, len(heights))},{y}" for number, y in enumerate(heights))
        share = None if one.value is None else (ranked.index(one.value) + 1) / len(ranked)
        found.append(Line(points, _said(search, one), share))
    return sorted(found, key=lambda line: line.share or 0.0)
