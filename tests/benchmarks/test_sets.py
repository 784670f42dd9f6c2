"""`python -m benchmarks.sets`: every stage runs on a few pictures, and ratios are of the right rows."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import sets


def test_every_stage_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sets.draw(3)
    latents, found = Path("fitted/latents/tiny"), {}
    for name, stage in sets.STAGES.items():
        took = stage()
        found[name] = len(list(latents.glob("*.safetensors"))) if latents.exists() else 0
        assert all(value >= 0 for value in took.values()) and ("cold_s" in took) == name.startswith("load")
    captions = [json.loads(line) for line in Path("fitted/captions.jsonl").read_text("utf-8").splitlines()]
    assert len(captions) == 4 and all(row["caption"].startswith("captain") for row in captions)
    assert len(list(Path("captions").glob("*.json"))) == 3, "of each picture that was there when captions were made"
    assert found == {
        "scrape": 0,
        "fit": 0,
        "caption": 0,
        "flip": 0,
        "flip a file each": 0,
        "encode": 1,
        "encode one more": 1,
        "load": 1,
        "load, a file each": 8,
    }


def test_ratios_are_of_sizes_and_of_layouts() -> None:
    rows = [
        {"stage": stage, "pictures": count, "seconds": count * place, "cold_s": count * place**2, "peak_rss_mib": 10}
        for count in (5, 50)
        for place, stage in enumerate(sets.STAGES, start=1)
    ]
    said = sets.ratios(rows)
    assert said[0] == "scrape: 50 over 5 pictures: time 10.0, peak RSS 1.00"
    assert said[-1] == "load, 50 pictures: shards over a file each: warm 0.89, cold 0.79"


def test_stages_are_chosen_by_name_and_run_in_their_order() -> None:
    assert sets.names("flip,fit") == ["fit", "flip"]
    with pytest.raises(argparse.ArgumentTypeError, match="no stage fitt; there are scrape, fit, caption"):
        sets.names("fitt,flip")
    few = [{"stage": "fit", "pictures": count, "seconds": count, "peak_rss_mib": 10} for count in (5, 50)]
    assert sets.ratios(few) == ["fit: 50 over 5 pictures: time 10.0, peak RSS 1.00"]
