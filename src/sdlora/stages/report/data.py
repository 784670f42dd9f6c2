"""What the pages show, as one value that becomes JSON: versions, samples, references, datasets and thumbnails."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.flow import freshness
from sdlora.flow.hashing import sha256_of
from sdlora.flow.identity import told
from sdlora.stages.adopt.recipe import FACTS
from sdlora.stages.evaluate.compare import over_trainings
from sdlora.stages.evaluate.statistics import LEVEL, holm
from sdlora.stages.evaluate.tables import (
    BETTER,
    ONE_TRAINING,
    UNRESOLVED,
    WORSE,
    difference,
    is_tested,
    reported,
    verdict_of,
)
from sdlora.stages.fit.fit import PICTURES
from sdlora.stages.report.dataset import dataset
from sdlora.stages.report.recipe import Summary
from sdlora.stages.report.thumbnails import Thumbnails
from sdlora.stages.report.votes import DIGITS, Vote, tally
from sdlora.stages.sample.parts import all_drawn

RESAMPLES = 2000  # where a single reference is measured, and what a `best.json` without `bootstrap_samples` had
LEAST_SEEDS = 3  # of a reference, from which on its own difference has an interval
# Columns of `metrics.csv`: over the references that chose, and over those that report.
MEANS = ("mean", "ci_low", "ci_high", "test_mean", "test_ci_low", "test_ci_high")
ABOUT = ("part", "step", "reference", "seed", "file")  # columns of `pictures.csv` that are no metric
POINTS = 240  # of a curve: steps are averaged in so many stretches

Figures = dict[str, dict[str, float | None]]  # metric -> figure -> value
ByReference = dict[tuple[str, str, str], dict[str, float]]  # (metric, step, reference) -> values by name


def page_data(
    versions: Mapping[str, Summary],
    results: Path,
    references: Mapping[str, Path],
    datasets: Mapping[str, Path],
    votes: Sequence[Vote],
    root: str,
    trainings: Mapping[str, Sequence[str]] | None = None,
    pages: Collection[str] = (),
    folders: Mapping[str, Sequence[Path]] | None = None,
) -> dict[str, Any]:
    """Everything a page over some versions shows.

    Args:
        versions: What each is compared by.
        results: The folder with a folder for each.
        references: The fitted set that holds each version's references.
        datasets: The fitted set that each learnt from.
        votes: What people voted.
        root: The way from the page to `results/`.
        trainings: The versions that are further trainings of another, by that, which is the first of them.
        pages: The versions that have a page to link to.
        folders: Where each version's own pictures lie, which the refused ones are shown from.
    """
    thumbnails = Thumbnails()
    shown = [_version(name, settings, results / name, thumbnails) for name, settings in versions.items()]
    correct([version["figures"] for version in shown])
    for version in shown:
        _judge_again(version, len(shown))
    _count(votes, shown)
    sets = {str(folder): _references(folder, results, thumbnails) for folder in dict.fromkeys(references.values())}
    for version in shown:
        version["references"] = str(references[version["name"]])
        version["dataset"] = str(datasets[version["name"]])
        version["page"] = version["name"] in pages
    return {
        "root": root,
        "versions": shown,
        "references": sets,
        "datasets": {
            str(folder): dataset(folder, thumbnails, (folders or {}).get(name, ()))
            for folder, name in {folder: name for name, folder in datasets.items()}.items()
        },
        "lower_is_better": sorted({m for v in shown for m, up in v["best"]["higher_is_better"].items() if not up}),
        "level": LEVEL,
        "note": ONE_TRAINING if len(shown) > 1 else "",
        "chosen_by": next((v["best"]["choose_by"] for v in shown), None),
        "trainings": _over_trainings(trainings or {}, results),
        "votes": [vote.row() for vote in votes],
        "thumbnails": thumbnails.found,
    }


def _version(name: str, settings: Summary, result: Path, thumbnails: Thumbnails) -> dict[str, Any]:
    best, foreign = records.read_json(result / "best.json"), _foreign(result / "checkpoints" / FACTS)
    samples: dict[str, dict[str, dict[str, list[str]]]] = {}
    for row in all_drawn(result):
        file = row["file"]
        cell = samples.setdefault(str(row["step"]), {}).setdefault(row["reference"], {})
        cell[str(row["seed"])] = [thumbnails.key(result / file), file, sha256_of(result / file)[:DIGITS]]
    return {
        "name": name,
        "settings": settings,
        "best": best,
        "verdict": verdict_of(best),
        "why": _why(best, bool(foreign)),
        "figures": figures_of(best),
        "accepted": accepted_of(result),
        "foreign": foreign,
        "steps": sorted(map(int, samples)),
        "votes": {},
        "samples": samples,
        "metrics": metrics_of(result, best),
        "log": _log(result / "train_log.csv"),
        "tables": {path.stem: records.read_csv(path) for path in sorted((result / "tables").glob("*.csv"))},
    }


def _judge_again(version: dict[str, Any], versions: int) -> None:
    """Call nothing better or worse that is not so any more when its p-value is corrected over a page's versions."""
    p = version["figures"].get(version["best"]["choose_by"], {}).get("p")
    if version["verdict"] in (BETTER, WORSE) and p is not None and p > LEVEL:
        version["verdict"] = UNRESOLVED
        version["why"] += f"; among the {versions} versions of this page it is not sure (Holm's p {p:.2g})"


def _over_trainings(trainings: Mapping[str, Sequence[str]], results: Path) -> dict[str, dict[str, Any]]:
    """What versions that were trained several times gain, their p-values corrected over these versions."""
    found = {name: over_trainings([results / one for one in names], RESAMPLES) for name, names in trainings.items()}
    correct([*found.values()])
    return {name: {"names": [*trainings[name]], "figures": figures} for name, figures in found.items()}


def _count(votes: Sequence[Vote], versions: Sequence[dict[str, Any]]) -> None:
    """Give each version the votes on its checkpoints, by step."""
    pictures = {
        (f"{version['name']}/{step}", reference, seed): cell[2]
        for version in versions
        for step, drawn in version["samples"].items()
        for reference, seeds in drawn.items()
        for seed, cell in seeds.items()
    }
    for side, found in tally(votes, pictures).items():
        name, _, step = side.rpartition("/")
        next(version for version in versions if version["name"] == name)["votes"][step] = found


def _foreign(facts: Path) -> list[str]:
    """Where the LoRA of a version that was not trained comes from, a line each."""
    rows = records.read_json(facts) if facts.is_file() else []
    return [f"{row['name']} at {row['weight']:g}, sha256 {row['sha256'][:12]}" for row in rows]


def _why(best: Mapping[str, Any], foreign: bool) -> str:
    """Why a step was chosen, as the page has it: a LoRA from elsewhere has no steps, and stands as step 1."""
    said, own = str(best.get("why", "")), f"step {best['best_step']}: "
    return said.replace(own, "as it came: ", 1) if foreign else said


def figures_of(best: Mapping[str, Any]) -> Figures:
    """What is shown of a `best.json`: the test's figures. Where it is not independent they have no p-value."""
    found = reported(best)["figures"]
    return {metric: {**figures, "p": figures["p"] if is_tested(best) else None} for metric, figures in found.items()}


def correct(versions: Sequence[Figures]) -> None:
    """Correct each metric's p-values over the versions (Holm), in place."""
    for metric in {metric for found in versions for metric in found}:
        family = [found[metric] for found in versions if metric in found and found[metric]["p"] is not None]
        for member, p in zip(family, holm([float(member["p"] or 0) for member in family]), strict=True):
            member["p"] = p


def metrics_of(result: Path, best: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each metric says of each step: of its references, of their mean, and of the difference to step 0.

    Returns:
        Metric -> step -> `values` by reference, over its seeds (None where it was not drawn); `by_picture`: each
        picture's own, by reference and seed; means and their intervals; `against`: the paired difference to step 0 and
        its 95 % interval, by part of the references; `by_reference`: the same of one reference, over its seeds, where
        there are enough. None of these intervals is corrected for looking at many.
    """
    samples = int(best.get("bootstrap_samples", RESAMPLES))
    found: dict[str, dict[str, Any]] = {}
    for row in records.read_csv(result / "metrics.csv"):
        values = [float(value) if value else None for key, value in row.items() if key.startswith("image")]
        numbers = {key: float(row[key]) for key in MEANS if row.get(key)}
        found.setdefault(row["metric"], {})[row["step"]] = {
            "values": values,
            **numbers,
            "by_picture": {},
            "by_reference": {},
        }
    chose = len(best["validation"]["references"])
    for steps in found.values():
        for step, one in steps.items():
            one["against"] = _against(one["values"], steps["0"]["values"], chose, samples) if step != "0" else {}
    drawn = _by_picture(result / "pictures.csv")
    for (metric, step, reference), own in drawn.items():
        found[metric][step]["by_picture"][reference] = own
    for (metric, step, reference), figures in _by_reference(drawn, samples).items():
        found[metric][step]["by_reference"][reference] = figures
    return found


def _against(
    after: Sequence[float | None], before: Sequence[float | None], chose: int, samples: int
) -> dict[str, dict[str, float]]:
    """A step's difference to step 0 over the references that chose, and over those that report."""
    parts = {"validation": slice(0, chose), "test": slice(chose, None)}
    pairs = {
        part: [(one, other) for one, other in zip(after[place], before[place], strict=True) if None not in (one, other)]
        for part, place in parts.items()
    }
    return {part: _figures([*zip(*found, strict=True)], samples) for part, found in pairs.items() if len(found) > 1}


def _figures(sides: Sequence[Sequence[Any]], samples: int) -> dict[str, float]:
    """The difference of two sides, the first less the second, with its interval."""
    found = difference(sides[0], sides[1], samples)
    return {key: found[key] for key in ("delta", "ci_low", "ci_high")}


def _by_picture(table: Path) -> ByReference:
    """Each picture's own value, by its seed."""
    drawn: ByReference = {}
    for row in records.read_csv(table) if table.is_file() else []:
        for metric in [key for key in row if key not in ABOUT]:
            drawn.setdefault((metric, row["step"], row["reference"]), {})[row["seed"]] = float(row[metric])
    return drawn


def _by_reference(drawn: ByReference, samples: int) -> ByReference:
    """Each reference's difference to step 0, seed by seed."""
    found = {}
    for (metric, step, reference), after in drawn.items():
        before = drawn.get((metric, "0", reference), {})
        shared = [seed for seed in after if seed in before]
        if step != "0" and len(shared) >= LEAST_SEEDS:
            sides = [[side[seed] for seed in shared] for side in (after, before)]
            found[metric, step, reference] = {**_figures(sides, samples), "seeds": len(shared)}
    return found


def _log(table: Path) -> dict[str, list[float]]:
    """Loss and learning rate, as means over stretches of steps."""
    rows = records.read_csv(table)
    stretch = max(1, -(-len(rows) // POINTS))
    found: dict[str, list[float]] = {"step": [], "loss": [], "learning_rate": []}
    for first in range(0, len(rows), stretch):
        part = rows[first : first + stretch]
        found["step"].append(int(part[-1]["step"]))
        for key in ("loss", "learning_rate"):
            found[key].append(float(f"{sum(float(row[key]) for row in part) / len(part):.6g}"))
    return found


def _references(folder: Path, results: Path, thumbnails: Thumbnails) -> dict[str, dict[str, str]]:
    """The references of a fitted set, by id: prompt, thumbnail, and the file as `results/` has it."""
    rows = [row for row in records.read_jsonl(folder / "captions.jsonl") if row["split"] == "reference"]
    files = {row["id"]: folder / PICTURES / f"{row['id']}.png" for row in rows}
    return {
        row["id"]: {
            "prompt": row["caption"],
            "picture": thumbnails.key(files[row["id"]]),
            "file": Path(os.path.relpath(files[row["id"]], results)).as_posix(),
        }
        for row in rows
    }


def accepted_of(result: Path) -> list[str]:
    """What was accepted of a version's files after updates of code or packages, a line each."""
    lines = []
    for path in sorted((result / "made").glob("*.json")):
        made = freshness.read_made(path)
        for update in made.accepted if made else ():
            before, after = ({name: pair[side] for name, pair in update.items()} for side in (0, 1))
            lines.append(f"{path.stem}: {told(sorted(update), before, after)}")
    return lines
