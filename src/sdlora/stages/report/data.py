"""What the pages show, as one value that becomes JSON: versions, samples, references, datasets and thumbnails."""

import base64
import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora import records
from sdlora.flow import freshness
from sdlora.flow.hashing import sha256_of
from sdlora.flow.identity import told
from sdlora.images.pictures import read_rgb
from sdlora.stages.adopt.recipe import FACTS
from sdlora.stages.caption.recipe import NOBODY
from sdlora.stages.evaluate.compare import over_trainings
from sdlora.stages.evaluate.statistics import LEVEL, holm
from sdlora.stages.evaluate.tables import ONE_TRAINING, is_tested, reported
from sdlora.stages.fit.fit import PICTURES
from sdlora.stages.report.recipe import Summary
from sdlora.stages.report.votes import DIGITS, Vote, tally
from sdlora.stages.sample.parts import all_drawn

THUMBNAIL_PX = 128  # longer side; the picture itself is linked
QUALITY = 88  # of WebP
RESAMPLES = 2000  # of an interval over a single training
# Columns of `metrics.csv`: over the references that chose, and over those that report.
MEANS = ("mean", "ci_low", "ci_high", "test_mean", "test_ci_low", "test_ci_high")
POINTS = 240  # of a curve: steps are averaged in so many stretches

Figures = dict[str, dict[str, float | None]]  # metric -> figure -> value


class Thumbnails:
    """Small pictures, each once however often it is shown (step 0 is the same for many versions)."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._keys: dict[Path, str] = {}

    def key(self, path: Path) -> str:
        """The name under which a picture stands in the page."""
        if path not in self._keys:
            small = _small(read_rgb(path))
            self._keys[path] = hashlib.sha256(small).hexdigest()[:16]
            self.found[self._keys[path]] = f"data:image/webp;base64,{base64.b64encode(small).decode()}"
        return self._keys[path]


def _small(picture: Image.Image) -> bytes:
    if max(picture.size) > THUMBNAIL_PX:
        picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "webp", quality=QUALITY, method=6)
    return buffer.getvalue()


def page_data(
    versions: Mapping[str, Summary],
    results: Path,
    references: Mapping[str, Path],
    datasets: Mapping[str, Path],
    votes: Sequence[Vote],
    root: str,
    trainings: Mapping[str, Sequence[str]] | None = None,
    pages: Collection[str] = (),
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
    """
    thumbnails = Thumbnails()
    shown = [_version(name, settings, results / name, thumbnails) for name, settings in versions.items()]
    correct([version["figures"] for version in shown])
    _count(votes, shown)
    sets = {str(folder): _references(folder, thumbnails) for folder in dict.fromkeys(references.values())}
    for version in shown:
        version["references"] = str(references[version["name"]])
        version["dataset"] = str(datasets[version["name"]])
        version["page"] = version["name"] in pages
    return {
        "root": root,
        "versions": shown,
        "references": sets,
        "datasets": {str(folder): _dataset(folder, thumbnails) for folder in dict.fromkeys(datasets.values())},
        "lower_is_better": sorted({m for v in shown for m, up in v["best"]["higher_is_better"].items() if not up}),
        "level": LEVEL,
        "note": ONE_TRAINING if len(shown) > 1 else "",
        "chosen_by": next((v["best"]["choose_by"] for v in shown), None),
        "trainings": _over_trainings(trainings or {}, results),
        "votes": [vote.row() for vote in votes],
        "thumbnails": thumbnails.found,
    }


def _version(name: str, settings: Summary, result: Path, thumbnails: Thumbnails) -> dict[str, Any]:
    best = records.read_json(result / "best.json")
    samples: dict[str, dict[str, dict[str, list[str]]]] = {}
    for row in all_drawn(result):
        file = row["file"]
        cell = samples.setdefault(str(row["step"]), {}).setdefault(row["reference"], {})
        cell[str(row["seed"])] = [thumbnails.key(result / file), file, sha256_of(result / file)[:DIGITS]]
    return {
        "name": name,
        "settings": settings,
        "best": best,
        "figures": figures_of(best),
        "accepted": accepted_of(result),
        "foreign": _foreign(result / "checkpoints" / FACTS),
        "steps": sorted(map(int, samples)),
        "votes": {},
        "samples": samples,
        "metrics": _metrics(result / "metrics.csv"),
        "log": _log(result / "train_log.csv"),
        "tables": {path.stem: records.read_csv(path) for path in sorted((result / "tables").glob("*.csv"))},
    }


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


def _metrics(table: Path) -> dict[str, dict[str, Any]]:
    """Metric -> step -> values by reference (None where it was not drawn), means and intervals."""
    found: dict[str, dict[str, Any]] = {}
    for row in records.read_csv(table):
        values = [float(value) if value else None for key, value in row.items() if key.startswith("image")]
        numbers = {key: float(row[key]) for key in MEANS if row.get(key)}
        found.setdefault(row["metric"], {})[row["step"]] = {"values": values, **numbers}
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


def _references(folder: Path, thumbnails: Thumbnails) -> dict[str, dict[str, str]]:
    """The references of a fitted set, by id: prompt and picture."""
    rows = [row for row in records.read_jsonl(folder / "captions.jsonl") if row["split"] == "reference"]
    return {
        row["id"]: {"prompt": row["caption"], "picture": thumbnails.key(folder / PICTURES / f"{row['id']}.png")}
        for row in rows
    }


def _dataset(folder: Path, thumbnails: Thumbnails) -> dict[str, Any]:
    """What was learnt from: pictures as they were fitted, captions and who wrote them, sources; what was refused."""
    source = folder.parent
    manifest = {row["id"]: row for row in records.read_jsonl(source / "manifest.jsonl")}
    captions = {row["id"]: row for row in records.read_jsonl(folder / "captions.jsonl")}
    pictures = []
    for row in records.read_jsonl(folder / "fit.jsonl"):
        if row["split"] != "train":
            continue
        about, caption = manifest.get(row["id"], {}), captions.get(row["id"], {})
        pictures.append(
            {
                "picture": thumbnails.key(folder / row["file"]),
                "name": row["name"],
                "caption": caption.get("caption", ""),
                "by": _author(str(caption.get("origin", ""))),
                "licence": about.get("licence"),
                "page": about.get("page_url"),
                "engine": about.get("engine"),
                "original": row["original"],
                "share": round(row["box"][2] * row["box"][3] / (row["bucket"][0] * row["bucket"][1]), 3),
            }
        )
    refused = [
        {"name": row["name"], "reason": row["reason"]} for row in records.read_jsonl(source / "rejected.jsonl")[:200]
    ]
    return {"pictures": pictures, "refused": refused}


def _author(origin: str) -> str:
    """Who wrote a caption."""
    known = {"override": "written by hand", "source": "from the source", NOBODY: "is the trigger alone"}
    return known.get(origin, "by BLIP")


def accepted_of(result: Path) -> list[str]:
    """What was accepted of a version's files after updates of code or packages, a line each."""
    lines = []
    for path in sorted((result / "made").glob("*.json")):
        made = freshness.read_made(path)
        for update in made.accepted if made else ():
            before, after = ({name: pair[side] for name, pair in update.items()} for side in (0, 1))
            lines.append(f"{path.stem}: {told(sorted(update), before, after)}")
    return lines
