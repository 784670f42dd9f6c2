"""A dataset that somebody shared: its manifest, pin and journal, and texts that no reader expects."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from hostile import attack
from hostile.hub import CANARY, DECODED, picture
from sdlora import records
from sdlora.config.dataset import Dataset
from sdlora.config.params import Fit
from sdlora.errors import SdloraError
from sdlora.images.masks import read_fitted
from sdlora.images.pictures import read_rgb
from sdlora.stages.fit.fit import fit_dataset
from sdlora.stages.scrape import pin
from sdlora.stages.scrape.gather import gather
from sdlora.stages.scrape.recipe import ScrapeRecipe

BING = {"kind": "bing", "query": "cat", "limit": 3}


class Shared(ScrapeRecipe):
    """Of a dataset that lies in data/."""

    folder_pattern: ClassVar[str] = "data"


RECIPE = Shared(
    wildcards={}, dataset=Dataset.model_validate_json(json.dumps({"sources": [BING], "trigger": "-"})), files={}
)


def shared(folder: Path, **changes: Any) -> Path:
    """A pinned dataset of one picture whose row says something else."""
    content = picture()
    digest = hashlib.sha256(content).hexdigest()
    records.write_bytes(folder / "data" / "raw" / f"{digest}.png", content)
    (folder / "victim.png").write_bytes(b"mine")
    row = {"id": digest[:16], "file": f"{digest}.png", "sha256": digest, "name": "0", "caption": None, **changes}
    records.write_json(folder / "data" / "pin.json", {"asked": pin.asked_for(RECIPE), "rows": [row]})
    records.write_jsonl(folder / "data" / "manifest.jsonl", [{**row, "split": "train"}])
    return folder / "data"


def _outside(folder: Path) -> set[Path]:
    inside = [folder / "data", folder / ".sdlora"]
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path for path in found if not any(path.is_relative_to(place) for place in inside)}


def _row(stage: str, **changes: Callable[[Path], Any]) -> Callable[[Path], str | None]:
    def attempt(folder: Path) -> str | None:
        stated = {key: make(folder) for key, make in changes.items()}
        data = shared(folder, **stated)
        before = _outside(folder)
        try:
            if stage == "fit":
                fit_dataset(Fit(size_px=64), data, data / "fitted")
            else:
                pin.scrape(RECIPE, again=False)
                pin.may_run(RECIPE, allowed=True, forced=False)
        finally:
            new, victim = _outside(folder) - before, (folder / "victim.png").read_bytes()
        if new or victim != b"mine":
            return f"written outside the dataset: {[path.name for path in new] or 'victim.png'}"
        return "it was taken for a row that a scrape wrote"

    return attempt


IDS: dict[str, Callable[[Path], Any]] = {
    "climbs": lambda folder: "../../victim",
    "is absolute": lambda folder: str(folder / "victim"),
    "has a slash": lambda folder: "a/b",
    "is a number": lambda folder: 5,
    "is missing": lambda folder: None,
    "ends with a line feed": lambda folder: "0123456789abcdef\n",
}
FILES: dict[str, Callable[[Path], Any]] = {
    "climbs": lambda folder: "../../victim.png",
    "is absolute": lambda folder: str(folder / "victim.png"),
    "is a device": lambda folder: "/dev/zero",
    "has a suffix of digits": lambda folder: "0" * 64 + ".p0g",
    "is a list": lambda folder: ["a"],
}
for _stage in ("fit", "pin"):
    for _name, _make in IDS.items():
        attack("shared", f"{_stage}: id {_name}")(_row(_stage, id=_make))
    for _name, _make in FILES.items():
        attack("shared", f"{_stage}: file {_name}")(_row(_stage, file=_make))


DEEP = "[" * 5000 + "]" * 5000
for _file, _text in {
    "pin.json": '{"asked": ' + DEEP + ', "rows": []}',
    "pin.json of rows that are none": '{"asked": {}, "rows": [1, null]}',
    "pin.json that is not UTF-8": "\udcff",
}.items():

    @attack("shared", f"deep or odd {_file}")
    def _odd(folder: Path, file: str = _file.split(" ")[0], text: str = _text) -> str | None:
        data = shared(folder)
        (data / file).write_bytes(text.encode("utf-8", "surrogateescape"))
        pin.may_run(RECIPE, allowed=True, forced=False)
        return "it was read"


for _file in ("manifest.jsonl", "fitted/kept.json"):

    @attack("shared", f"{_file} nested 5,000 deep")
    def _deep(folder: Path, file: str = _file) -> str | None:
        data = shared(folder)
        records.write_text(data / file, '{"x": ' + DEEP + "}\n")
        fit_dataset(Fit(size_px=64), data, data / "fitted")
        return None


for _name, _line in {
    "a journal nested 5,000 deep": DEEP,
    "a journal of rows that are none": '{"url": "http://a.example/x"}\n[]\n5',
    "a journal whose hash climbs": json.dumps(
        {"url": "http://[::1]/x", "verdict": "arrived", "sha256": "../../victim", "size_bytes": 4, "final_url": "x",
         "look": {"format": "png", "width_px": 9, "height_px": 9, "dhash": "0", "colours": "0"}}
    ),
}.items():  # fmt: skip

    @attack("shared", _name)
    def _journal(folder: Path, line: str = _line) -> str | None:
        from rig import zoo

        from sdlora import choices

        data = shared(folder)
        with zoo.Zoo() as server:
            found = ["http://[::1]/x", server.add("/good.png", picture("green"))]
            stamp = {"limits": {"max_mib": 20.0, "max_megapixels": 32.0, "honour_opt_out": True}}
            records.write_text(data / "journal.part.jsonl", json.dumps(stamp) + "\n" + line + "\n")
            before = choices.SOURCES["bing"]
            choices.SOURCES["bing"], zoo.RESULTS["cat"] = "rig.zoo:find", found
            try:
                limits = {"min_side_px": 8, "host_rate_per_s": 1000}
                gather(
                    Dataset.model_validate_json(json.dumps({"sources": [BING], "trigger": "x", "scrape": limits})),
                    data, server.context(),
                )  # fmt: skip
            finally:
                choices.SOURCES["bing"] = before
        rows = records.read_jsonl(data / "manifest.jsonl")
        return None if len(rows) == 1 else f"{len(rows)} pictures instead of 1"


@attack("shared", "a fitted PNG that is for another decoder")
def _fitted(folder: Path) -> str | None:
    DECODED.clear()
    (folder / "a.png").write_bytes(CANARY)
    for read in (read_rgb, read_fitted):
        with suppress(SdloraError):
            read(folder / "a.png")
    return "another decoder was asked" if DECODED else None


@attack("shared", "line separators of Unicode in a title")
def _separators(folder: Path) -> str | None:
    title = "one\x85two\u2028three\u2029four\x1cfive\x0bsix"
    data = shared(folder, title=title)
    rows = records.read_jsonl(data / "manifest.jsonl")
    fit_dataset(Fit(size_px=64), data, data / "fitted")
    return None if [row["title"] for row in rows] == [title] else "the row came back in pieces"
