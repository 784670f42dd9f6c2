"""`make bench`: its rows come from the schema, and a short run writes its page."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, environment

sys.path.insert(0, str(ROOT))

from benchmarks import claims, measure, page
from benchmarks.rows import rows
from benchmarks.train import BASELINE, COLUMNS

from sdlora import choices


def test_every_menu_entry_switch_and_batch_size_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choices.OPTIMIZERS, "another", "torch.optim:SGD")
    found = {(row.group, row.name): row for row in rows(BASELINE)}
    for name in choices.OPTIMIZERS:
        assert name == BASELINE.optimizer or ("optimizer", name) in found
    for key in ("True",):
        assert ("gradient_checkpointing", key) in found
    assert {name for group, name in found if group == "batch_size"} == {"2", "4", "8"}
    assert ("latents", "mean") in found
    assert found["huber_schedule", "snr"].changes["loss"] == "huber", "an option gets what it needs"
    assert not any(group == "lr_schedule" for group, _ in found)
    assert all(row.changes or row.note or row.group == "baseline" for row in found.values())


def test_flops_of_known_operations() -> None:
    a, b = torch.zeros(8, 16, requires_grad=True), torch.zeros(16, 4)
    assert measure.flops_of(lambda step: a @ b) == 2 * 8 * 16 * 4
    query = torch.zeros(1, 2, 32, 16, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert measure.flops_of(lambda step: attend(query, query, query)) == 2 * 2 * 2 * 32 * 32 * 16
    both = measure.flops_of(lambda step: attend(query, query, query).sum().backward())
    assert both > 3 * 2 * 2 * 2 * 32 * 32 * 16


def test_ratios_are_within_pairs() -> None:
    assert measure.ratio([1.0, 10.0, 2.0], [2.0, 20.0, 4.0]) == 0.5


def test_the_page_keeps_the_other_sections(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text("# Performance\n\n## Scraping\n\nfast\n")
    for text in ("one", "two"):
        page.write(path, text)
    path.write_text(path.read_text() + "\n## After\n")
    page.write(path, "three")
    found = path.read_text()
    assert "## Scraping\n\nfast" in found and "## After" in found
    assert "three" in found and "two" not in found and found.count("## Training") == 1


def test_claims_are_empty_until_measured() -> None:
    empty = claims.measured([], "tiny", {})
    assert set(empty) == set(claims.CLAIMS) and not any(empty.values())
    row = dict.fromkeys(COLUMNS, "") | {"base": "tiny", "group": "cache", "ratio": "0.25"}
    row["name"] = "VAE and text encoders every step"
    assert claims.measured([row], "tiny", {})["cache"] == "4.00×"


@pytest.mark.workflow
def test_a_short_run_writes_table_and_page(served: Path, tmp_path: Path) -> None:
    words = ["--steps", "1", "--repeats", "1", "--threads", "1", "--loss-steps", "0", "--only", "ema"]
    words += ["--bases", "tiny", "--diffusers-script", str(tmp_path / "missing.py")]
    done = subprocess.run(
        [served, "-m", "benchmarks.train", *words, "--csv", tmp_path / "t.csv", "--page", tmp_path / "p.md"],
        cwd=ROOT, env={**environment(), "PYTHONPATH": str(ROOT / "src")}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "t.csv").open() as handle:
        found = {(row["group"], row["name"]): row for row in csv.DictReader(handle)}
    (averaged,) = (row for (group, _), row in found.items() if group == "ema")
    assert float(averaged["steps_per_s"]) > 0 and 0 < float(averaged["peak_mib"]) < 1000
    assert "there is no file" in found["peer", "missing.py"]["note"]
    text = (tmp_path / "p.md").read_text()
    for said in ("overhead of the loop", "GFLOP a step", "3–5× faster", "| ema | {} | 1 |"):
        assert said in text
