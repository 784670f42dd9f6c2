"""What was scraped stays scraped: the web is asked when somebody says so, and at no other time.

A dataset from the web is pinned by `pin.json` in its folder: what was asked for, and every picture that was accepted.
It lies beside the files that Snakemake owns and deletes before it runs a job again, so the manifest can always be
written anew from it: after another choice of references, after a scrape that failed or was given up. Only
`snakemake <target> --forcerun scrape` asks the web again, and only with `scraping: true`.
"""

import json
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.config.dataset import Dataset
from sdlora.config.sources import BingSource, FolderSource, HubSource, SeleniumSource, Source
from sdlora.errors import DataError, ParamsError
from sdlora.flow.hashing import sha256_of
from sdlora.stages.scrape import manifest
from sdlora.stages.scrape.gather import clear, gather
from sdlora.stages.scrape.recipe import ScrapeRecipe
from sdlora.stages.scrape.source import ScrapeContext
from sdlora.stages.scrape.split import split

NOTICE = """scraping: please note
  Search engines' terms generally forbid automated access (Microsoft's for Bing:
  https://about.ads.microsoft.com/en-us/resources/policies/web-crawling); that you may do this is for you to know.
  A picture that can be found is not a picture that may be used: manifest.jsonl has each one's page and, where the
  search or the dataset names one, its licence. Opt-outs (X-Robots-Tag) are honoured unless you say otherwise."""


def uses_web(dataset: Dataset) -> bool:
    """Whether gathering its pictures asks anybody outside this machine."""
    return any(
        isinstance(source, BingSource | SeleniumSource) or (isinstance(source, HubSource) and source.local is None)
        for source in dataset.sources
    )


def on_this_machine(source: Source) -> tuple[str | None, tuple[str, ...] | None]:
    """The folder of a source that lies here, if it does, and which files count there; None = all."""
    if isinstance(source, FolderSource):
        return source.path, None
    if isinstance(source, HubSource):
        return source.local, None  # `datasets` reads many formats: all files count
    return None, ()


def asked_for(recipe: ScrapeRecipe) -> dict[str, Any]:
    """The part of a recipe that decides which pictures are found."""
    return _asked(recipe.dataset, recipe.files)


def _asked(dataset: Dataset, files: dict[str, str]) -> dict[str, Any]:
    return {"dataset": dataset.model_dump(mode="json", include={"sources", "scrape"}), "files": files}


def sources_of(values: dict[str, Any]) -> Dataset:
    """What a pin says of its dataset, with the defaults of today where it says nothing (triggers belong elsewhere)."""
    return Dataset.model_validate_json(records.canonical_json({**values, "trigger": "-"}))


def may_run(recipe: ScrapeRecipe, allowed: bool, forced: bool) -> None:
    """Called before any job: whether the dataset is there, or may be scraped now.

    Args:
        recipe: Of its scrape job.
        allowed: The switch `scraping`.
        forced: Whether the user asked to scrape again.

    Raises:
        ParamsError: If it has to be scraped but scraping is off, or if what is asked for has changed.
        DataError: If scraped pictures are damaged or gone.
    """
    if not uses_web(recipe.dataset):
        return
    name, folder = recipe.name, recipe.folder
    pinned = _read(folder)
    again = f"`snakemake {folder}/manifest.jsonl --forcerun scrape`"
    if forced or pinned is None:
        if not allowed:
            raise ParamsError(
                f"datasets.{name} comes from the web and {'has no pictures yet' if pinned is None else 'is scraped'}, "
                f"but scraping is off; read docs/scraping.md, then set `scraping: true` at the top of params.yaml"
                + ("; if somebody has shared the pictures with DVC, say `dvc pull`" if pinned is None else "")
            )
        return
    if pinned["asked"] != asked_for(recipe):
        difference = _difference(pinned["asked"], asked_for(recipe))
        raise ParamsError(
            f"datasets.{name} asks for something else than what was scraped ({difference}); set it back to keep the "
            f"pictures, or say {again} to replace them"
        )
    damaged = _damaged(pinned, folder)
    if damaged:
        raise DataError(
            f"{folder}: {len(damaged)} scraped pictures are gone or damaged, raw/{damaged[0]} for one; bring them "
            f"back with `dvc checkout data/sets`, or say {again} to scrape anew"
        )


def scrape(recipe: ScrapeRecipe, again: bool, context: ScrapeContext | None = None) -> list[Path]:
    """Make a dataset: from its pin if it has one, else from its sources.

    Args:
        recipe: Of the scrape job.
        again: Whether the user asked to scrape again.
        context: How the outside is reached; only tests give one.

    Returns:
        The files that later stages read.

    Raises:
        DataError: If fewer training pictures than the minimum were accepted.
    """
    dataset, out = recipe.dataset, recipe.folder
    if not uses_web(dataset):
        return gather(dataset, out, context)
    pinned = _read(out)
    if not again and pinned and pinned["asked"] == asked_for(recipe):
        print(f"scrape: {len(pinned['rows'])} pictures as they were scraped; the web is not asked", flush=True)
        return _publish(dataset, pinned["rows"], out)
    print(NOTICE, flush=True)
    spared = {row["file"] for row in pinned["rows"]} if pinned else set()
    files = gather(dataset, out, context, spared)
    rows = [{k: v for k, v in row.items() if k != "split"} for row in manifest.read(out)]
    # in the manifest's own order of keys, so that what is written from it is the same to the byte
    records.write_text(out / "pin.json", json.dumps({"asked": asked_for(recipe), "rows": rows}, ensure_ascii=False))
    clear(out / "raw", "*", keep={path.name for path in files})  # only now is the pin before of no use
    return files


def _publish(dataset: Dataset, pictures: list[records.Row], out: Path) -> list[Path]:
    """Write the manifest of pinned pictures, with the references chosen as the dataset says now."""
    rows, _ = split(pictures, dataset.held_out, out)
    training = sum(row["split"] == "train" for row in rows)
    if training < dataset.minimum:
        raise DataError(
            f"{out}: {training} training pictures were scraped, but the dataset's minimum is {dataset.minimum}; lower "
            f"minimum or held_out, or say `snakemake {out}/manifest.jsonl --forcerun scrape` to scrape again"
        )
    records.write_jsonl(out / "manifest.jsonl", rows)
    return [out / "manifest.jsonl", *(out / "raw" / row["file"] for row in rows)]


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / "pin.json"
    if not path.exists():
        return None
    try:
        pinned = records.read_json(path)
        rows = manifest.check(pinned["rows"], path)
        # read as a recipe of today: a setting that did not exist then had its default
        asked = pinned["asked"]
        return {"asked": _asked(sources_of(asked["dataset"]), asked["files"]), "rows": rows}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged; bring it back with `dvc checkout data/sets`, or delete it") from None


def _damaged(pinned: dict[str, Any], folder: Path) -> list[str]:
    """Pictures of the pin that are not there as they were."""
    files = ((row["file"], row.get("sha256")) for row in pinned["rows"])
    return [file for file, digest in files if not (p := folder / "raw" / file).is_file() or sha256_of(p) != digest]


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first setting that differs, for a message."""
    if before.get("files") != now["files"]:
        return "the pictures in its folders have changed"
    old, new = before["dataset"], now["dataset"]
    for number, (was, wants) in enumerate(zip(old["sources"], new["sources"], strict=False)):
        for key in sorted({*was, *wants}):
            if was.get(key) != wants.get(key):
                return f"sources[{number}].{key} was {was.get(key)!r}, is {wants.get(key)!r}"
    if len(old["sources"]) != len(new["sources"]):
        return f"it had {len(old['sources'])} sources, has {len(new['sources'])}"
    keys = (key for key in sorted({*old["scrape"], *new["scrape"]}) if old["scrape"].get(key) != new["scrape"].get(key))
    return "".join(f"scrape.{key} was {old['scrape'].get(key)!r}, is {new['scrape'].get(key)!r}" for key in [*keys][:1])
