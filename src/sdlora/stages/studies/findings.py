"""What came of each claim: measured with its change and without, and a verdict in words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.stages.evaluate.compare import Measured, against, base_of, measured
from sdlora.stages.evaluate.statistics import LEVEL, crossed_detectable, holm
from sdlora.stages.studies.recipe import Compared, StudiesRecipe

COLUMNS = (
    "study", "source", "says", "changed", "metric", "claimed", "without", "with", "delta", "ci_low", "ci_high",
    "p_alone", "p", "spread_without", "spread_with", "smallest_detectable", "verdict",
)  # fmt: skip
RESAMPLES = 2000  # where a single reference is measured, and there is nothing to cross
INTRO = """# What the write-ups claim, put to the test

Made by `snakemake studies` from `studies.yaml`. Each claim is two versions that differ in one thing, each trained with
{seeds} seeds and measured at the step that the rule chooses, on references that did not choose (`docs/evaluation.md`).

The difference is between the means without the change and with it, with a 95 % interval over trainings and references.
The spread, without the change / with it, is the standard deviation between the means of trainings that differ in their
seed alone. A verdict is *holds* or *the reverse* if the p-value, corrected over all rows (Holm), is at most {level}.
*As claimed by itself*, *the reverse by itself*: the interval excludes 0, but among so many rows one may do so by luck.
*Not shown* is no proof of the opposite: beside it stands how large a difference would have been found in 80 % of cases.
What holds on this base and these pictures need not hold on others.
"""


def write_findings(recipe: StudiesRecipe, results: Path, out: Path) -> list[Path]:
    """Write `findings.csv` and `findings.md`.

    Args:
        recipe: The claims and the trainings that they compare.
        results: Where the trainings' folders are.
        out: Where the findings go.

    Raises:
        DataError: If a training is not measured.
    """
    rows = found(recipe.compared, results)
    records.write_csv(out / "findings.csv", COLUMNS, [[_spelt(row[name]) for name in COLUMNS] for row in rows])
    seeds = len(recipe.compared[0].changed_to)
    trainings = {one.starts_from: [results / name for name in one.without or one.changed_to] for one in recipe.compared}
    starts = [row for name, settings in recipe.starts.items() for row in _start(name, settings, trainings[name])]
    studies = {row["study"]: row for row in rows}  # all rows of one say the same
    parts = [
        INTRO.format(seeds=seeds, level=LEVEL),
        records.markdown_table(CLAIMS, said_once(map(_claim_cells, rows))),
        "## The claims\n",
        "".join(f"- **{row['study']}**: “{row['says']}” ({row['source']})\n" for row in studies.values()),
        "## What they start from\n",
        records.markdown_table(STARTS, said_once(map(_start_cells, starts))),
    ]
    records.write_text(out / "findings.md", "\n".join(parts))
    return [out / "findings.csv", out / "findings.md"]


def found(compared: Sequence[Compared], results: Path) -> list[records.Row]:
    """A row for each claim and metric; p-values are corrected over those that were tested, the others have none."""
    rows = [row for one in compared for row in _measured(one, results)]
    tested = [row for row in rows if not row["doubt"]]
    for row in rows:
        row["p_alone"] = None if row["doubt"] else row["p"]
        row["p"] = None
    for row, p in zip(tested, holm([row["p_alone"] for row in tested]), strict=True):
        row["p"] = p
    for row in rows:
        row["verdict"] = verdict(row, len(tested))
    return rows


def verdict(row: Mapping[str, Any], count: int) -> str:
    """Whether a claim holds, in words.

    Args:
        row: `claimed`: 'better' or 'same'; `p_alone` and `p`, which is corrected; `improves`: whether the difference
            is on the good side; `doubt`: why nothing may be said, or nothing; `smallest_detectable`, None where it is
            not known.
        count: Rows that p is corrected over.
    """
    if row["doubt"]:
        return f"not shown: {row['doubt']}"
    is_same = row["claimed"] == "same"
    if row["p"] <= LEVEL:
        good, bad = ("does not hold: better", "does not hold: worse") if is_same else ("holds", "the reverse")
        return good if row["improves"] else bad
    if row["p_alone"] <= LEVEL:
        good, bad = ("better", "worse") if is_same else ("as claimed", "the reverse")
        return f"{good if row['improves'] else bad} by itself, not sure among {count} rows (p {row['p']:.3g})"
    said, what = ("no difference seen", "one") if is_same else ("not shown", "a difference")
    smallest = row["smallest_detectable"]
    return said if smallest is None else f"{said} ({what} below {_spelt(smallest)} would mostly have been missed)"


def _measured(one: Compared, results: Path) -> Iterator[records.Row]:
    changed = measured([results / training for training in one.changed_to])
    without = (
        measured([results / training for training in one.without])
        if one.without
        else base_of([results / training for training in one.changed_to])
    )
    about = {"study": one.name, "says": one.says, "source": one.source, "changed": one.changed}
    for metric in (*one.better, *one.same):
        claimed = "same" if metric in one.same else "better"
        yield {**about, "claimed": claimed, **_figures(without, changed, metric)}


def _figures(without: Measured, changed: Measured, metric: str) -> records.Row:
    """A metric's means, their difference, and what luck alone does to them."""
    tables = [without.values[metric], changed.values[metric]]
    difference = against(without, changed, metric, RESAMPLES)
    several = len(changed.references) > 1
    return {
        "metric": metric,
        "without": float(tables[0].mean()),
        "with": float(tables[1].mean()),
        **difference,
        "higher_is_better": changed.higher_is_better[metric],
        "improves": (difference["delta"] > 0) == changed.higher_is_better[metric],
        "doubt": without.doubt or changed.doubt,
        "spread_without": _spread(without, metric),
        "spread_with": _spread(changed, metric),
        "smallest_detectable": crossed_detectable(tables, (-1, 1)) if several else None,
    }


def _spread(side: Measured, metric: str) -> float | None:
    """Standard deviation of the trainings' means; the base has none."""
    means = side.values[metric].mean(axis=1)
    return float(means.std(ddof=1)) if len(means) > 1 else None


def _start(name: str, settings: Mapping[str, Any], trainings: Sequence[Path]) -> Iterator[records.Row]:
    """What a start gains over its base, and how far its trainings are apart, in each metric."""
    base, trained = base_of(trainings), measured(trainings)
    about = ", ".join(f"{key} {settings[key]}" for key in ("base", "dataset", "fit", "rank", "learning_rate", "steps"))
    for metric in trained.values:
        yield {"version": name, "about": about, **_figures(base, trained, metric)}


CLAIMS = ("study", "changed", "metric", "without", "with", "difference", "spread", "verdict")
STARTS = ("version", "settings", "metric", "base", "trained", "difference", "run-to-run spread")


def said_once(rows: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    """Rows of which the first two cells, what is measured and its settings, are empty where the row before has them."""
    before: Sequence[str] = ("", "")
    for row in rows:
        yield ["", "", *row[2:]] if row[:2] == before[:2] else list(row)
        before = row


def _claim_cells(row: Mapping[str, Any]) -> list[str]:
    spread = f"{_spelt(row['spread_without']) or '-'} / {_spelt(row['spread_with'])}"
    return [row["study"], row["changed"], *_numbers(row), spread, row["verdict"]]


def _start_cells(row: Mapping[str, Any]) -> list[str]:
    return [row["version"], row["about"], *_numbers(row), _spelt(row["spread_with"])]


def _numbers(row: Mapping[str, Any]) -> list[str]:
    difference = f"{row['delta']:+.4g} [{row['ci_low']:.4g}, {row['ci_high']:.4g}]"
    metric = f"{row['metric']} ({'higher' if row['higher_is_better'] else 'lower'} is better)"
    return [metric, _spelt(row["without"]), _spelt(row["with"]), difference]


def _spelt(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
