"""Comparing two versions, and one with its base."""

from pathlib import Path

import pytest
from chosen import METRICS, explained, parts
from helpers import ROOT

from sdlora import records
from sdlora.config.evaluate import Evaluate
from sdlora.config.load import load
from sdlora.errors import DataError, ParamsError
from sdlora.flow import comparing
from sdlora.stages.evaluate.compare import compare, over_trainings
from sdlora.stages.evaluate.tables import (
    Values,
    metrics_columns,
    metrics_rows,
)


def measured(folder: Path, psnr: list[float], feature: list[float], references: list[str]) -> Path:
    """What evaluating a version leaves, of step 0 and one checkpoint."""
    values: Values = {("psnr_db", 0): [1.0] * len(psnr), ("psnr_db", 100): psnr}
    values |= {("effnet_lite0_distance", 0): [1.0] * len(psnr), ("effnet_lite0_distance", 100): feature}
    validation, test = parts(values, references)
    columns = metrics_columns(len(validation.references), len(test.references) if test else 0)
    records.write_csv(folder / "metrics.csv", columns, metrics_rows(validation, test, 100))
    settings = Evaluate(metrics=(*METRICS,), choose_by="psnr_db")
    records.write_json(folder / "best.json", explained(values, settings, names=references))
    return folder


NAMES = [*"abcdefghij"]


def test_comparing_two_versions_pairs_their_test_pictures(tmp_path: Path) -> None:
    chose = [99.0] * 5  # what chose is not looked at again
    one = measured(tmp_path / "v4", [*chose, 8.0, 12.0, 16.0, 9.0, 15.0], [0.5, 0.5, 0.6, 0.5, 0.5] * 2, NAMES)
    other = measured(tmp_path / "v4-padded", [*chose, 8.5, 12.6, 16.4, 9.5, 15.5], [0.4, 0.7, 0.6, 0.4, 0.6] * 2, NAMES)
    compare(one, other, 1000, tmp_path / "table.csv")
    rows = {row["metric"]: row for row in records.read_csv(tmp_path / "table.csv")}
    # far apart between pictures, yet every picture gained: only the paired interval can see it
    assert float(rows["psnr_db"]["mean_one"]) == 12.0
    assert float(rows["psnr_db"]["delta"]) == pytest.approx(0.5)
    assert float(rows["psnr_db"]["ci_low"]) >= 0.35
    assert rows["psnr_db"]["better"] == "v4-padded (one training each)"
    assert rows["effnet_lite0_distance"]["better"] == "neither for sure"
    assert rows["psnr_db"]["note"].startswith("one training each")
    compare(other, one, 1000, tmp_path / "table.csv")
    swapped = {row["metric"]: row for row in records.read_csv(tmp_path / "table.csv")}
    assert swapped["psnr_db"]["better"] == "v4-padded (one training each)" and swapped["psnr_db"]["delta"] == "-0.5"


def test_a_version_is_compared_with_its_base(tmp_path: Path) -> None:
    one = measured(tmp_path / "v8", [8.0, 8.1, 8.2, 8.3, 8.4] * 2, [0.50, 0.51, 0.49, 0.50, 0.52] * 2, NAMES)
    for names, delta in (("v8", "base"), -7.2), (("base", "v8"), 7.2):
        compare(*(tmp_path / name for name in names), 1000, tmp_path / "table.csv")
        rows = {row["metric"]: row for row in records.read_csv(tmp_path / "table.csv")}
        assert float(rows["psnr_db"]["delta"]) == pytest.approx(delta)
        assert {row["better"] for row in rows.values()} == {"v8"}
        assert rows["psnr_db"]["note"].startswith("one training:")
    with pytest.raises(DataError, match="v8 is compared with itself"):
        compare(one, one, 1000, tmp_path / "table.csv")


def test_several_trainings_are_compared_with_their_luck(tmp_path: Path) -> None:
    """Every training of `two` beats every one of `one` by far; of `luck` one training alone does."""
    spread = [0.0, 0.3, 0.1, 0.2, 0.4] * 2
    folders: dict[str, list[Path]] = {}
    for name, gains in (("one", (0.0, 0.1, 0.2)), ("two", (5.0, 5.1, 5.2)), ("luck", (5.0, 0.1, 0.2))):
        folders[name] = [
            measured(
                tmp_path / f"{name}{n or ''}", [8 + gain + (1 + gain / 10) * part for part in spread], [0.5] * 10, NAMES
            )
            for n, gain in enumerate(gains)
        ]
    rows = {}
    for other in ("two", "luck"):
        compare(tmp_path / "one", tmp_path / other, 1000, tmp_path / "table.csv", folders)
        rows[other] = records.read_csv(tmp_path / "table.csv")[1]
        assert rows[other]["metric"] == "psnr_db" and rows[other]["step_other"] == "100 100 100"
        assert rows[other]["note"].startswith("several trainings each")
    assert rows["two"]["better"] == "two" and rows["luck"]["better"] == "neither for sure"
    compare(tmp_path / "one", tmp_path / "luck", 1000, tmp_path / "table.csv")
    assert records.read_csv(tmp_path / "table.csv")[1]["better"] == "luck (one training each)"
    compare(tmp_path / "one", tmp_path / "base", 1000, tmp_path / "table.csv", folders)
    assert records.read_csv(tmp_path / "table.csv")[1]["better"] == "one"
    figures = over_trainings(folders["luck"], 1000)["psnr_db"]
    assert figures["between"] == pytest.approx(2.8, abs=0.1) and float(str(figures["ci_low"])) < 7 + 5 / 3


def test_a_lower_distance_is_better(tmp_path: Path) -> None:
    one = measured(tmp_path / "one", [8.0] * 10, [0.50, 0.61, 0.52, 0.55, 0.57] * 2, NAMES)
    other = measured(tmp_path / "other", [8.0] * 10, [0.40, 0.50, 0.43, 0.44, 0.47] * 2, NAMES)
    compare(one, other, 1000, tmp_path / "table.csv")
    better = {row["metric"]: row["better"] for row in records.read_csv(tmp_path / "table.csv")}
    assert better == {"psnr_db": "neither for sure", "effnet_lite0_distance": "other (one training each)"}


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    few = [measured(tmp_path / name, [value] * 9, [0.5] * 9, NAMES[:9]) for name, value in (("x", 8.0), ("y", 9.0))]
    compare(*few, 1000, tmp_path / "few.csv")
    row = records.read_csv(tmp_path / "few.csv")[0]
    assert row["better"] == "neither for sure" and "no independent test" in row["note"]
    one = measured(tmp_path / "one", [1.0] * 10, [1.0] * 10, NAMES)
    stranger = measured(tmp_path / "v9", [1.0] * 10, [1.0] * 10, [*NAMES[:9], "z"])
    with pytest.raises(DataError, match="different references"):
        compare(one, stranger, 100, tmp_path / "none.csv")
    for side, fitted in ((one, "pad-edge-64"), (stranger, "pad-blur-64")):
        records.write_json(side / "best.json", {**records.read_json(one / "best.json"), "fitted": fitted})
    with pytest.raises(DataError, match=r"one was .* fitted as pad-edge-64, v9 on pad-blur-64: .*fit\.size_px and"):
        compare(one, stranger, 100, tmp_path / "none.csv")
    noisy = measured(tmp_path / "v7", [1.0] * 10, [1.0] * 10, NAMES)
    best = records.read_json(noisy / "best.json")
    best["test"]["seeds"] = [42, 43]
    records.write_json(noisy / "best.json", best)
    with pytest.raises(DataError, match=r"one was drawn with the seeds 42, v7 with 42, 43: .* sample\.report_seeds"):
        compare(one, noisy, 100, tmp_path / "none.csv")
    other = measured(tmp_path / "v6", [1.0] * 10, [1.0] * 10, NAMES)
    records.write_csv(other / "metrics.csv", ["step", "metric"], [])
    with pytest.raises(DataError, match=r"^no metric measures both: one has effnet_lite0_distance, psnr_db; v6 has ;"):
        compare(one, other, 100, tmp_path / "none.csv")
    with pytest.raises(DataError, match="is not measured yet"):
        compare(one, tmp_path / "nowhere", 100, tmp_path / "none.csv")


def test_numbers_of_two_networks_are_not_compared() -> None:
    shipped = load(ROOT / "params.yaml")
    for metrics, refused in ((("psnr_db", "clip_t"), True), (("psnr_db",), False)):
        for name, model in (("v7", "a/clip"), ("v8", "b/clip")):
            evaluate = Evaluate(metrics=metrics, choose_by="psnr_db", clip_model=model)
            shipped.versions[name] = shipped.versions[name].model_copy(update={"evaluate": evaluate})
        if not refused:
            comparing._check_networks(shipped, ["v7", "v8"])
            continue
        with pytest.raises(
            ParamsError, match=r"clip_t is measured of v7 by a/clip at main, of v8 by b/clip .*\.clip_model"
        ):
            comparing.recipe_of(shipped, "v7", "v8")
