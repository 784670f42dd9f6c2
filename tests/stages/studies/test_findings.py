"""What is said of a claim, on results whose truth is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdlora import records
from sdlora.errors import DataError
from sdlora.stages.studies.findings import COLUMNS, found, verdict, write_findings
from sdlora.stages.studies.recipe import Compared, StudiesRecipe

METRICS = {"psnr_db": True, "effnet_lite0_distance": False}
REFERENCES = [*"abcdefgh"]
SETTINGS = {"base": "tiny", "dataset": "captain", "fit": "pad", "rank": 16, "learning_rate": 1e-4, "steps": 400}


def trained(results: Path, name: str, mean: float, luck: float = 0.02, seeds: int = 3, tested: bool = True) -> Any:
    """Trainings whose PSNR is `mean` above the base's 10 dB, and whose distance is as far below the base's 20."""
    random = np.random.default_rng(sum(map(ord, name)))
    of_reference = np.random.default_rng(7).normal(size=len(REFERENCES))
    names = tuple(f"{name}-seed{seed}" if seed else name for seed in range(seeds))
    for number, training in enumerate(names):
        own = mean + luck * (number - 1) + 0.05 * random.normal(size=len(REFERENCES))
        rows = []
        for step, gain in ((0, np.zeros(len(REFERENCES))), (400, own)):
            for metric, higher in METRICS.items():
                values = (10 if higher else 20) + of_reference + (gain if higher else -gain)
                rows.append([step, metric, *(f"{value:.4f}" for value in values)])
        columns = ["step", "metric", *(f"image{n}" for n in range(1, len(REFERENCES) + 1))]
        records.write_csv(results / training / "metrics.csv", columns, rows)
        part = {"references": REFERENCES, "seeds": [42]}
        best = {"best_step": 400, "references": REFERENCES, "overruled": None, "higher_is_better": METRICS}
        best |= {"validation": part, "test": part if tested else None, "verdict": "better" if tested else "untested"}
        records.write_json(results / training / "best.json", best)
    return names


def claim(name: str, without: tuple[str, ...], changed: tuple[str, ...], **metrics: tuple[str, ...]) -> Compared:
    wanted = {"better": (), "same": (), **metrics}
    return Compared(
        name=name, says=f"{name} | helps", source="nobody", changed="train.rank: 64", without=without,
        changed_to=changed, **wanted,
    )  # fmt: skip


def test_verdicts_are_the_truth(tmp_path: Path) -> None:
    start = trained(tmp_path, "start", 1.0)
    up, down, again = (trained(tmp_path, name, mean) for name, mean in (("up", 1.5), ("down", 0.5), ("again", 1.0)))
    compared = [
        claim("up", start, up, better=("psnr_db", "effnet_lite0_distance")),
        claim("down", start, down, better=("effnet_lite0_distance",)),
        claim("again", start, again, better=("psnr_db",), same=("effnet_lite0_distance",)),
        claim("moved", start, up, same=("psnr_db",)),
        claim("lora", (), start, better=("effnet_lite0_distance",)),
    ]
    rows = found(compared, tmp_path)
    said = [(row["study"], row["metric"], row["claimed"], row["verdict"]) for row in rows]
    assert [line[3] for line in said if line[0] != "again"] == [
        "holds", "holds", "the reverse", "does not hold: better", "holds",
    ]  # fmt: skip
    better, same = (row for row in rows if row["study"] == "again")
    assert better["verdict"].startswith("not shown (a difference below 0.") and better["claimed"] == "better"
    assert same["verdict"].startswith("no difference seen (one below 0.") and same["claimed"] == "same"
    assert f"{better['smallest_detectable']:.4g} would mostly have been missed" in better["verdict"]
    lora = rows[-1]
    assert (lora["spread_without"], lora["delta"]) == (None, pytest.approx(-1.0, abs=0.05))
    assert 0 < lora["spread_with"] < 0.1, "the trainings' means are apart by their luck"


def test_p_values_are_corrected_over_all_claims(tmp_path: Path) -> None:
    start, up = trained(tmp_path, "start", 1.0, luck=0.1), trained(tmp_path, "up", 1.4, luck=0.1)
    one = claim("one", start, up, better=("psnr_db",))
    (alone,) = found([one], tmp_path)
    among = found([one, *(claim(f"n{n}", start, start, better=("psnr_db",)) for n in range(40))], tmp_path)
    assert alone["verdict"] == "holds" and among[0]["p"] == pytest.approx(41 * alone["p"])
    assert among[0]["p_alone"] == alone["p"] == alone["p_alone"]
    assert among[0]["verdict"] == f"as claimed by itself, not sure among 41 rows (p {among[0]['p']:.3g})"


def test_luck_is_in_the_interval(tmp_path: Path) -> None:
    start, up = trained(tmp_path, "start", 1.0, luck=1.0), trained(tmp_path, "up", 1.5, luck=1.0)
    (row,) = found([claim("up", start, up, better=("psnr_db",))], tmp_path)
    assert row["verdict"].startswith("not shown") and row["ci_low"] < -1 < 2 < row["ci_high"]
    assert row["spread_without"] == pytest.approx(1.0, abs=0.05)


def test_without_an_independent_test_nothing_is_shown(tmp_path: Path) -> None:
    start, up = trained(tmp_path, "start", 1.0, tested=False), trained(tmp_path, "up", 2.0, tested=False)
    (row,) = found([claim("up", start, up, better=("psnr_db",))], tmp_path)
    assert row["verdict"].startswith("not shown: there is no independent test")
    assert row["p"] is None, "what nobody may say has no p-value"
    assert row["p_alone"] is None
    assert verdict({**row, "doubt": "", "p": 0.001}, 1) == "holds"
    flat = {**row, "doubt": "", "p_alone": 0.06, "p": 0.06, "smallest_detectable": None}
    assert verdict(flat, 1) == "not shown" and verdict({**flat, "claimed": "same"}, 1) == "no difference seen"


@pytest.mark.parametrize(
    ("claimed", "improves", "said"),
    [
        ("better", True, "as claimed"), ("better", False, "the reverse"), ("same", True, "better"),
        ("same", False, "worse"),
    ],
)  # fmt: skip
def test_what_its_own_interval_shows_is_not_called_unseen(claimed: str, improves: bool, said: str) -> None:
    row = {"claimed": claimed, "improves": improves, "doubt": "", "p_alone": 0.003, "p": 0.06}
    row["smallest_detectable"] = 0.1
    assert verdict(row, 20) == f"{said} by itself, not sure among 20 rows (p 0.06)"


def test_a_table_and_a_page_are_written(tmp_path: Path) -> None:
    start, up = trained(tmp_path, "start", 1.0), trained(tmp_path, "up", 1.5)
    recipe = StudiesRecipe(
        wildcards={},
        compared=(claim("up", start, up, better=("psnr_db", "effnet_lite0_distance")),),
        starts={"start": SETTINGS},
    )
    files = write_findings(recipe, tmp_path, tmp_path / "studies")
    assert files == [tmp_path / "studies/findings.csv", tmp_path / "studies/findings.md"]
    row, _ = records.read_csv(files[0])
    assert (*row,) == COLUMNS and (row["verdict"], row["says"]) == ("holds", "up | helps")
    page = files[1].read_text("utf-8")
    assert "| up | train.rank: 64 | psnr_db (higher is better) | " in page and "| holds |" in page
    assert "|  |  | effnet_lite0_distance (lower is better) | " in page, (
        "a study's second metric, its settings said once"
    )
    assert page.count("- **up**: “up | helps” (nobody)\n") == 1
    assert "3 seeds" in page and "base tiny, dataset captain, fit pad, rank 16" in page
    starts = page.split("## What they start from")[1]
    assert starts.count("| start |") == 1, "its settings are said once"
    spreads = [line for line in starts.splitlines() if "is better)" in line]
    assert len(spreads) == len(METRICS), "the run-to-run spread of the start alone, in each metric"
    (tmp_path / "up/best.json").unlink()
    with pytest.raises(DataError, match="up is not measured yet"):
        write_findings(recipe, tmp_path, tmp_path / "studies")
