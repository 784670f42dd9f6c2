"""From a LoRA back to its pictures: the crate is read with the library that others read it with."""

import json
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from helpers import Project
from rocrate.rocrate import ROCrate

from sdlora import records
from sdlora.cli import main
from sdlora.errors import DataError
from sdlora.flow import croissant, provenance
from sdlora.flow.freshness import Made, outputs_identity
from sdlora.flow.hashing import sha256_of

CRATE = "results/a/ro-crate-metadata.json"


def ids(value: Any) -> list[str]:
    """The ids that a property refers to."""
    if isinstance(value, list):
        return [one for part in value for one in ids(part)]
    return [value["@id"]] if isinstance(value, dict) else []


def sources_of(crate: ROCrate, lora: str) -> set[str]:
    """All that a file goes back to, by the jobs alone."""
    jobs = [entity.properties() for entity in crate.get_by_type("CreateAction")]
    found, waiting = set(), [lora]
    while waiting:
        one = waiting.pop()
        for job in jobs:
            if one in ids(job["result"]):
                new = [*ids(job.get("object", [])), *ids(job["instrument"])]
                waiting += [other for other in new if other not in found]
                found.update(new)
    parts = [part for one in found for part in ids(crate.dereference(one).properties().get("hasPart", []))]
    return found | set(parts)


@pytest.mark.workflow
def test_the_lora_leads_back_to_every_picture(built: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with chdir(built.folder):
        main(["provenance", "a"])
        said = capsys.readouterr().out
        assert "back through 11 jobs to 6 pictures" in said
        assert "licence not recorded: 6 of 6 pictures" in said
        crate = ROCrate("results/a")
        lora = crate.mainEntity
        best = records.read_json(Path("results/a/best.json"))["best_step"]
        assert lora.id == f"checkpoints/step-{best:06d}/pytorch_lora_weights.safetensors"
        found = [crate.dereference(one).properties() for one in sources_of(crate, lora.id)]
        rows = records.read_jsonl(Path("data/sets/small/manifest.jsonl"))
        pictures = {one["sha256"]: one for one in found if one["@type"] == "ImageObject"}
        assert set(pictures) == {row["sha256"] for row in rows}
        assert {one["license"]["@id"] for one in pictures.values()} == {"#no-licence"}
        captions = {one["about"]["@id"]: one for one in found if one["@type"] == "CreativeWork" and "text" in one}
        for row in records.read_jsonl(Path("data/sets/small/pad-edge-64/captions.jsonl")):
            caption = captions[f"#picture:{row['id']}"]
            assert caption["text"] == row["caption"]
            assert crate.dereference(caption["creator"]["@id"])["identifier"] == row["origin"]
        train = records.read_json(Path("results/a/made/train.json"))["asked"]
        identities = {one.get("identifier") for one in found}
        assert train["base_identity"] in identities
        versions = {one.get("version") for one in found}
        assert train["code"] in versions
        asks = crate.dereference("#job:results/a/made/train.json")["additionalProperty"]
        values = {one["name"]: one["value"] for one in asks}
        assert values["machine"].startswith("cpu (")
        assert json.loads(values["settings"])["train"]["rank"] == 2
        assert "Nothing to be done" in built.snakemake("-n", "results/a/metrics.csv")


@pytest.mark.workflow
def test_every_file_is_there_and_no_reference_leads_nowhere(built: Project) -> None:
    with chdir(built.folder):
        main(["provenance", "a"])
        graph = records.read_json(Path(CRATE))["@graph"]
        known = {entity["@id"] for entity in graph}
        used = {one for entity in graph for key, value in entity.items() if key != "@id" for one in ids(value)}
        assert {one for one in used - known if not one.startswith("https://w3id.org/ro/crate/")} == set()
        files = [entity for entity in graph if entity["@type"] == "File"]
        assert {entity["@id"] for entity in files} == set(ids(graph_root(graph)["hasPart"]))
        for entity in files:
            assert sha256_of(Path("results/a") / entity["@id"]) == entity["sha256"]


@pytest.mark.workflow
def test_croissant_is_read_by_its_own_library(built: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Which validates on reading, and holds each file against its sha256."""
    import mlcroissant  # 2 s, which every worker would take

    folder = Path("data/sets/small")
    with chdir(built.folder):
        main(["provenance", "a", "--croissant"])
        assert "results/a/croissant.json: its pictures and captions" in capsys.readouterr().out
        dataset = mlcroissant.Dataset(jsonld="results/a/croissant.json")
        assert not dataset.metadata.issues.errors
        assert dataset.metadata.license is None  # nobody recorded one
        for at, table, file, column in (
            (folder, "pictures", "manifest.jsonl", "sha256"),
            (folder / "pad-edge-64", "captions", "captions.jsonl", "caption"),
            (folder / "pad-edge-64", "learnt", "train/metadata.jsonl", "text"),
        ):
            found = [*dataset.records(f"{at}/{table}")]
            rows = records.read_jsonl(at / file)
            for key in ("id", column):
                assert [row[f"{at}/{table}/{key}"].decode() for row in found] == [row[key] for row in rows]
            assert [one.sha256 for one in dataset.metadata.distribution if one.id == str(at / file)] == [
                sha256_of(at / file)
            ]


def test_a_dataset_has_a_licence_where_every_picture_has_one(tmp_path: Path) -> None:
    rows = [{"id": f"{n:016x}", "file": f"{n:064x}.png", "licence": f"https://l.test/{n}"} for n in (2, 1, 2)]
    with chdir(tmp_path):
        for missing, expected in ((0, ["https://l.test/1", "https://l.test/2"]), (1, None)):
            records.write_jsonl(
                Path("data/sets/s/manifest.jsonl"), [*rows, *([{**rows[0], "licence": None}] * missing)]
            )
            made = Made("", {}, {"data/sets/s/manifest.jsonl": "0" * 64}, {"stage": "scrape"})
            path = croissant.write(Path("results/v8"), {Path("data/sets/s/made/scrape.json"): made})
            assert records.read_json(path).get("license") == expected


@pytest.mark.workflow
def test_what_is_wrong_with_a_croissant_is_seen(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above could fail: an unknown column's table, and no package."""
    import mlcroissant  # 2 s, which every worker would take

    with chdir(built.folder):
        main(["provenance", "a", "--croissant"])
        text = records.read_json(Path("results/a/croissant.json"))
        text["recordSet"][0]["field"][0]["source"]["fileObject"]["@id"] = "elsewhere.jsonl"
        with pytest.raises(mlcroissant.ValidationError, match=r"elsewhere\.jsonl"):
            mlcroissant.Dataset(jsonld=text)
        Path("results/a/croissant.json").unlink()
        monkeypatch.setitem(sys.modules, "mlcroissant", None)
        with pytest.raises(SystemExit, match=r"needs the package mlcroissant: say `pip install 'sdlora\[croissant\]'`"):
            main(["provenance", "a", "--croissant"])
        assert not Path("results/a/croissant.json").exists()


def graph_root(graph: list[dict[str, Any]]) -> dict[str, Any]:
    return next(entity for entity in graph if entity["@id"] == "./")


@pytest.mark.workflow
def test_what_does_not_fit_its_record_is_refused_by_name(built: Project) -> None:
    log, captions = "results/a/train_log.csv", "data/sets/small/pad-edge-64/captions.jsonl"
    for path in (log, captions):
        kept = built.read(path)
        (built.folder / path).write_bytes(kept + b" ")
        with chdir(built.folder), pytest.raises(SystemExit, match=f"{path} is gone or not as it was made"):
            main(["provenance", "a"])
        (built.folder / path).write_bytes(kept)
    record = built.folder / "data/sets/small/made/scrape.json"
    row = records.read_json(record)
    row["outputs"].pop(next(name for name in row["outputs"] if "/raw/" in name))
    records.write_json(record, row)
    with chdir(built.folder), pytest.raises(SystemExit, match=r"fit\.json: what .*scrape\.json names is not what"):
        main(["provenance", "a"])
    assert not (built.folder / CRATE).exists()


def test_what_nothing_measured_goes_back_to_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An animation of settings before, and the training of a version that has become a mixture."""
    folder = Path("results/v8")

    def made(stage: str, before: tuple[str, ...], name: str, text: str) -> None:
        records.write_text(folder / name, text)
        inputs = {str(path): outputs_identity(path) for path in (folder / f"made/{one}.json" for one in before)}
        outputs = {str(folder / name): sha256_of(folder / name)}
        record = {"recipe": "", "asked": {"stage": stage}, "inputs": inputs, "outputs": outputs}
        records.write_json(folder / f"made/{stage}.json", record)

    with chdir(tmp_path):
        for lora in ("1", "2"):
            made("train", (), "checkpoints/lora", lora)
            made("sample", ("train",), "samples", lora)
            made("evaluate", ("sample",), "metrics.csv", lora)
            if lora == "1":
                made("animate", ("sample",), "animation.gif", lora)
        assert [path.stem for path in provenance.History(folder).jobs] == ["train", "sample", "evaluate"]
        assert "animate.json: what results/v8/made/sample.json names is not what" in capsys.readouterr().err
        made("adopt", (), "checkpoints/lora", "3")
        made("sample", ("adopt",), "samples", "3")
        made("evaluate", ("sample",), "metrics.csv", "3")
        assert [path.stem for path in provenance.History(folder).jobs] == ["adopt", "sample", "evaluate"]
        assert "train.json: results/v8/checkpoints/lora is gone or not as it was" in capsys.readouterr().err
        (folder / "metrics.csv").write_text("4")
        with pytest.raises(DataError, match=r"metrics\.csv is gone or not as it was made"):
            provenance.History(folder)


def test_a_name_without_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results/v8/made").mkdir(parents=True)
    with chdir(tmp_path), pytest.raises(SystemExit, match="no results of a version 'v9'; choices: v8"):
        main(["provenance", "v9"])
    with chdir(tmp_path), pytest.raises(SystemExit, match="results/v8: no LoRA is finished there"):
        main(["provenance", "v8"])


def test_a_picture_from_the_web_says_where_from(tmp_path: Path) -> None:
    row = {
        "id": "0" * 16, "file": f"{'0' * 64}.png", "name": "https://pictures.test/a.png", "engine": "bing",
        "query": "cats", "rank": 0, "url": "https://pictures.test/a.png", "page_url": "https://pictures.test/page",
        "title": "A cat",
        "licence": "https://creativecommons.org/licenses/by/4.0/", "revision": None, "final_url": None,
        "sha256": "0" * 64, "format": "PNG", "width_px": 64, "height_px": 64, "size_bytes": 12, "split": "train",
    }  # fmt: skip
    with chdir(tmp_path):
        writer = provenance.Writer("v8", provenance.History(Path("results/v8")))
        found = writer.crate.dereference(writer.picture(row)["@id"])
    assert found["contentUrl"] == row["url"] and found["license"] == row["licence"]
    assert found["isPartOf"].id == row["page_url"] and found["name"] == "A cat"
    assert writer.missing == {"url": 0, "licence": 0}
