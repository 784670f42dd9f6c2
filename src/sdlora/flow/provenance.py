"""What a version's LoRA comes from, as an RO-Crate: `results/<version>/ro-crate-metadata.json`.

    sdlora provenance v8        # --croissant: its pictures and captions in that form, too (`croissant.py`)

From the LoRA back through every job to each picture's URL, licence, hash, caption and its writer, the base, code,
packages and machine. All is read from the records that the jobs wrote (`made/*.json`, `manifest.jsonl`,
`captions.jsonl`), so it holds for versions that params.yaml no longer has; what no record says is said to be missing.
RO-Crate: https://w3id.org/ro/crate; jobs are actions as in https://w3id.org/ro/wfrun/process.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from sdlora import records
from sdlora.errors import DataError, ParamsError, suggest
from sdlora.flow import croissant, freshness, store
from sdlora.flow.freshness import Made
from sdlora.flow.hashing import FileHashes
from sdlora.flow.identity import identity_of
from sdlora.lora.names import file_in
from sdlora.stages.scrape import manifest

RESULTS = Path("results")
CRATE = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
NOT_RECORDED = "not recorded"
Ref = dict[str, str]


class History:
    """The records that a version goes back to, each checked against the files it names.

    What nothing measured goes back to may be of settings before: an animation that nobody asked for again, or the
    training of a version that has become a mixture. Where it does not fit, it is left out, and stderr is told.
    """

    def __init__(self, folder: Path) -> None:
        self.jobs: dict[Path, Made] = {}  # in the order in which they ran
        self._hashes = FileHashes()
        found = sorted((folder / "made").glob("*.json"))
        measured = folder / "made" / "evaluate.json"
        if measured in found:
            self._take(measured)
        trained = folder / "made" / "train.json" in self.jobs
        for path in found:
            before = dict(self.jobs)
            try:
                self._take(path)
            except DataError as error:
                self.jobs = before  # nothing that it alone goes back to
                if measured not in found or (path.stem == "export" and trained):
                    raise
                print(f"note: {error}; it is left out", file=sys.stderr)
        self._hashes.save()

    def _take(self, path: Path) -> None:
        if path in self.jobs:
            return
        made = freshness.read_made(path)
        if made is None or made.asked is None:
            why = (
                "there is no such record" if made is None else "it was written by an older sdlora without its settings"
            )
            raise DataError(f"{path}: {why}; bring it back with `dvc pull`, or run the version again")
        for before, identity in made.inputs.items():
            self._take(Path(before))
            if freshness.outputs_identity(Path(before)) != identity:
                raise DataError(f"{path}: what {before} names is not what this was made from; run the version again")
        for name in made.outputs:
            if not freshness.is_whole(Made("", {}, {name: made.outputs[name]}), self._hashes):
                raise DataError(f"{path}: {name} is gone or not as it was made; bring it back with `dvc checkout`")
        self.jobs[path] = made


class Writer:
    """Puts a history into a crate, whose entities refer to each other by id."""

    def __init__(self, name: str, history: History) -> None:
        self.folder, self.history = RESULTS / name, history
        self.crate = ROCrate()
        self.missing: dict[str, int] = {}  # what is not recorded, and of how many pictures
        self.pictures = 0
        self._results: dict[Path, list[Ref]] = {}

    def entity(self, id_: str, kind: str, **properties: Any) -> Ref:
        """An entity of the crate, described once."""
        if self.crate.dereference(id_) is None:
            known = {key: value for key, value in properties.items() if value not in (None, [], "")}
            self.crate.add(ContextEntity(self.crate, id_, properties={"@type": kind, **known}))
        return {"@id": id_}

    def write(self) -> Path:
        """Describe all and write the file."""
        actions = [self._action(path, made) for path, made in self.history.jobs.items()]
        root = self.crate.root_dataset
        lora = final_lora(self.folder, self.history)
        root["name"] = f"LoRA {self.folder.name} and what it was made from"
        root["description"] = (
            f"The files of version {self.folder.name}, the jobs that made them, and the pictures, captions, base, code "
            f"and packages that they were made from. The LoRA itself is {lora}."
        )
        root["license"] = self._no_licence()
        root["conformsTo"] = self.entity(PROFILE, "CreativeWork", name="Process Run Crate", version="0.5")
        root["mainEntity"] = {"@id": _file_id(lora)}
        root["mentions"] = actions
        records.write_json(self.folder / CRATE, self.crate.metadata.generate())
        return self.folder / CRATE

    def _action(self, path: Path, made: Made) -> Ref:
        """One job: what it used, what it made, with which settings, code and packages, and where that is known."""
        asked = made.asked or {}
        used = [ref for before in made.inputs for ref in self._results[Path(before)]]
        used += self._base(asked)
        result = self._files(made) if path.is_relative_to(self.folder) else self._set(path, made)
        self._results[path] = result
        settings = {key: value for key, value in asked.items() if key not in ("code", "software", "entries")}
        facts = {
            "settings": records.compact_json(settings).strip(),
            "menu entries": ", ".join(asked.get("entries", ())),
        }
        if asked["stage"] == "train":
            facts["machine"] = machine(made)
        if made.accepted:
            facts["kept after updates of"] = records.compact_json([*made.accepted]).strip()
        properties = [
            self.entity(f"#{quote(f'{path}:{name}')}", "PropertyValue", name=name, value=value)
            for name, value in facts.items()
            if value
        ]
        return self.entity(
            f"#job:{quote(str(path))}", "CreateAction", name=f"{asked['stage']}: {path.parent.parent}",
            actionStatus="http://schema.org/CompletedActionStatus", instrument=self._code(asked), object=used,
            result=result, additionalProperty=properties,
        )  # fmt: skip

    def _code(self, asked: dict[str, Any]) -> Ref:
        """A stage's code, and the packages that it imports."""
        packages = [
            self.entity(f"https://pypi.org/project/{name}/{quote(version)}/", "SoftwareApplication", name=name,
                        version=version, url=f"https://pypi.org/project/{name}/{quote(version)}/")
            for name, version in asked["software"].items()
            if version != "none"
        ]  # fmt: skip
        version = asked["code"] or f"{NOT_RECORDED}: what came from the web is pinned, whatever the code"
        return self.entity(
            f"#code:{asked['stage']}-{asked['code']}", "SoftwareApplication", name=f"sdlora {asked['stage']}",
            version=version, softwareRequirements=packages,
        )  # fmt: skip

    def _base(self, asked: dict[str, Any]) -> list[Ref]:
        """The weights that a job used, if it used any."""
        if not asked.get("base") or not asked.get("base_identity"):
            return []
        base, identity = asked["base"], asked["base_identity"]
        return [self._weights(base["model"], base["revision"], identity, f"base, family {base['family']}")]

    def _weights(self, model: str, revision: str | None, identity: str, what: str) -> Ref:
        of_hub = identity.startswith("hub:")
        return self.entity(
            f"#weights:{quote(identity)}", "SoftwareApplication", name=model, description=what, identifier=identity,
            url=f"https://huggingface.co/{quote(model)}" if of_hub else None, license=self._no_licence(),
            version=revision or (NOT_RECORDED if of_hub else identity),
        )  # fmt: skip

    def _files(self, made: Made) -> list[Ref]:
        """Files of the version's own folder."""
        found = []
        for name, digest in made.outputs.items():
            inside = Path(name).relative_to(self.folder)
            facts = {"sha256": digest, "contentSize": str(Path(name).stat().st_size), "name": str(inside)}
            self.crate.add_file(name, _file_id(inside), properties=facts)
            found.append({"@id": _file_id(inside)})
        return found

    def _set(self, path: Path, made: Made) -> list[Ref]:
        """What lies outside the version's folder: one collection a job, with its pictures or captions."""
        stage, folder = (made.asked or {})["stage"], path.parent.parent
        parts = {"scrape": self._scraped, "caption": self._captioned, "flip": self._learnt}
        listed = parts[stage](folder, made) if stage in parts else []
        return [
            self.entity(
                f"#made:{quote(str(path))}", "Collection", name=f"{len(made.outputs)} files of {stage} in {folder}",
                identifier=f"sha256:{freshness.outputs_identity(path)}", hasPart=listed,
            )
        ]  # fmt: skip

    def _scraped(self, folder: Path, made: Made) -> list[Ref]:
        return [self.picture(row) for row in manifest.read(folder)]

    def picture(self, row: records.Row) -> Ref:
        """A picture as it came; `url` is where from, `isPartOf` the page that it stood on."""
        page, licence = row.get("page_url"), row.get("licence")
        self.pictures += 1
        for fact in ("url", "licence"):
            self.missing[fact] = self.missing.get(fact, 0) + (not row.get(fact))
        return self.entity(
            f"#picture:{row['id']}", "ImageObject", name=row.get("title") or row["name"], sha256=row["sha256"],
            description=f"by the source {row['engine']}: {row['name']}"
            + ("" if row.get("url") else f"; URL {NOT_RECORDED}"),
            contentUrl=row.get("url"), url=row.get("final_url"), version=row.get("revision"),
            isPartOf=self.entity(page, "WebPage", name=page) if page else None,
            license=licence or self._no_licence(), encodingFormat=f"image/{str(row['format']).lower()}",
            width=row["width_px"], height=row["height_px"], contentSize=str(row["size_bytes"]),
        )  # fmt: skip

    def _captioned(self, folder: Path, made: Made) -> list[Ref]:
        asked = made.asked or {}
        return [
            self.entity(
                f"#caption:{quote(str(folder))}/{row['id']}", "CreativeWork", name=f"caption of {row['id']}",
                text=row["caption"], creator=self._author(row["origin"], asked), about={"@id": f"#picture:{row['id']}"},
                keywords=row["split"],
            )
            for row in records.read_jsonl(folder / "captions.jsonl")
        ]  # fmt: skip

    def _author(self, origin: str, asked: dict[str, Any]) -> Ref:
        """Who wrote a caption: a person's file, the source of the picture, or a captioner."""
        if origin == "override":
            file = asked["override"]
            return self.entity(f"#file:{quote(file)}", "Thing", name=f"written by hand in {file}",
                               identifier=f"sha256:{asked['overrides']}")  # fmt: skip
        if origin == "source":
            return self.entity("#source", "Thing", name="came with the picture, from its source")
        if asked["captioner"] == "-":
            return self.entity("#trigger", "Thing", name=asked["captioner_identity"])
        return self._weights(asked["captioner"], asked["captioner_revision"], origin, "captioner")

    def _learnt(self, folder: Path, made: Made) -> list[Ref]:
        """The pictures that are trained on, without the references, and their captions."""
        rows = [row for row in records.read_jsonl(folder / "captions.jsonl") if row["split"] == "train"]
        pictures = [{"@id": f"#picture:{row['id']}"} for row in rows]
        return pictures + [{"@id": f"#caption:{quote(str(folder))}/{row['id']}"} for row in rows]

    def _no_licence(self) -> Ref:
        text = "No record names a licence. That a thing can be found does not say that it may be used."
        return self.entity("#no-licence", "CreativeWork", name=f"licence {NOT_RECORDED}", description=text)


def _file_id(inside: Path | str) -> str:
    return quote(str(inside))


def final_lora(folder: Path, history: History) -> str:
    """The LoRA's file below the version's folder: at the chosen step, or the last one where nothing was measured.

    Where pictures are drawn with the average of the LoRA, that is its file.
    """
    drawn = history.jobs.get(folder / "made/sample.json")
    average = drawn is not None and drawn.asked is not None and drawn.asked["sample"]["weights"] == "ema"
    checkpoints = folder / "checkpoints"
    loras = {
        step.name: name
        for path, made in history.jobs.items()
        if path.parent == folder / "made" and (made.asked or {})["stage"] in ("train", "adopt")
        for name in sorted(made.outputs)
        for step in Path(name).parents
        if step.parent == checkpoints and Path(name) == file_in(step, average)
    }
    if not loras:
        raise DataError(f"{folder}: no LoRA is finished there; `snakemake {folder}/metrics.csv` makes it")
    best = folder / "best.json"
    chosen = f"step-{records.read_json(best)['best_step']:06d}" if folder / "made/evaluate.json" in history.jobs else ""
    return str(Path(loras.get(chosen, loras[max(loras)])).relative_to(folder))


def machine(made: Made) -> str:
    """What a training computed on, as its newest kept state says."""
    from sdlora.stages.train.checkpoint import newest_manifest  # imports torch

    identity = identity_of(made.asked or {}, [*map(Path, made.inputs)])
    for entry in store.entries("train"):
        found = newest_manifest(entry)
        if found is not None and found.identity == identity:
            return found.device
    return f"{NOT_RECORDED}: the training's states are not in {store.STORE}"


def run(name: str, dataset: bool = False) -> None:
    """The command: write the crate of a version and say what its records do not.

    Args:
        name: The version.
        dataset: Whether to write its pictures and captions as Croissant, too.

    Raises:
        ParamsError: If there are no results of that name, or Croissant is asked for and its package is not here.
        DataError: If a record or a file is missing, or is not what the version was made from.
    """
    there = sorted(path.parent.name for path in RESULTS.glob("*/made"))
    if name not in there:
        raise ParamsError(f"there are no results of a version {name!r}{suggest(name, there)}")
    writer = Writer(name, History(RESULTS / name))
    made = croissant.write(writer.folder, writer.history.jobs) if dataset else None
    for line in _said(writer.write(), writer):
        print(line)
    if made is not None:
        print(f"{made}: its pictures and captions, as Croissant")


def _said(path: Path, writer: Writer) -> Iterator[str]:
    jobs: Sequence[Path] = [*writer.history.jobs]
    yield f"{path}: {writer.crate.mainEntity.id} back through {len(jobs)} jobs to {writer.pictures} pictures"
    for fact, count in writer.missing.items():
        if count:
            yield f"{fact} {NOT_RECORDED}: {count} of {writer.pictures} pictures"
