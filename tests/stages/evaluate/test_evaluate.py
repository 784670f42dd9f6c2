"""Metrics, tables and the choice of a checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sdlora import records
from sdlora.config.params import Evaluate
from sdlora.errors import DataError
from sdlora.images.pictures import png_bytes
from sdlora.stages.evaluate.choose import best_step, explain
from sdlora.stages.evaluate.compare import compare
from sdlora.stages.evaluate.effnet import effnet_lite0_distance
from sdlora.stages.evaluate.psnr import psnr_db
from sdlora.stages.evaluate.run import at_size_of, evaluate_version, write_curves
from sdlora.stages.evaluate.ssim import ssim
from sdlora.stages.evaluate.tables import bootstrap_interval, difference, metrics_columns, metrics_rows

RANDOM = np.random.default_rng(0)


def picture() -> np.ndarray:
    return RANDOM.integers(0, 256, (32, 32, 3), np.uint8)


def test_psnr_agrees_with_its_formula_and_scikit_image() -> None:
    a, b = picture(), picture()
    mse = np.mean((a.astype(float) - b) ** 2)
    assert psnr_db(a, b) == pytest.approx(10 * np.log10(255**2 / mse))
    assert psnr_db(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255))
    assert psnr_db(a, b) == psnr_db(b, a)
    assert psnr_db(a, a) == 100.0


def test_ssim_has_wangs_settings() -> None:
    a = picture()
    b = np.clip(a.astype(int) + RANDOM.integers(-20, 20, a.shape), 0, 255).astype(np.uint8)
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert ssim(b, a) == pytest.approx(structural_similarity(a, b, data_range=255, channel_axis=-1, **wang))
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(b, a) != pytest.approx(structural_similarity(a, b, data_range=255, channel_axis=-1), abs=1e-6)


def test_sizes_are_never_put_right_in_silence() -> None:
    small, large, wide = (Image.new("RGB", size) for size in ((32, 32), (48, 48), (48, 32)))
    assert at_size_of(large, small).shape == (32, 32, 3)
    for sample, reference in ((small, large), (wide, small)):
        with pytest.raises(DataError, match="cannot be compared"):
            at_size_of(sample, reference)


def test_bootstrap_interval() -> None:
    low, high = bootstrap_interval([1.0, 2.0, 3.0, 4.0] * 25, 2000)
    assert low < 2.5 < high
    assert high - low == pytest.approx(2 * 1.96 * np.std([1, 2, 3, 4]) / 10, rel=0.15)
    assert bootstrap_interval([2.0], 100) == (2.0, 2.0)
    assert bootstrap_interval([1.0, 5.0], 100) == bootstrap_interval([1.0, 5.0], 100)
    assert difference([2.0, 3.0], [1.0, 2.0], 100) == {"delta": 1.0, "ci_low": 1.0, "ci_high": 1.0}


def test_the_choice_follows_the_rule() -> None:
    values = {("psnr_db", 0): [9.0], ("psnr_db", 100): [5.0], ("psnr_db", 200): [7.0], ("psnr_db", 300): [7.0],
              ("ssim", 0): [0.1], ("ssim", 100): [0.9], ("ssim", 200): [0.2], ("ssim", 300): [0.3]}  # fmt: skip
    assert best_step(values, Evaluate()) == 200
    assert best_step(values, Evaluate(choose_by="ssim")) == 100
    told = explain(values, Evaluate())
    assert "step 200" in told["why"] and "-2.0 against step 0" in told["why"]


@pytest.mark.parametrize("count", [1, 4, 5])
def test_few_references_give_no_verdict(count: int, tmp_path: Path) -> None:
    values = {("psnr_db", 0): [9.0] * count, ("psnr_db", 100): [9.5] * count}
    why = explain(values, Evaluate(metrics=("psnr_db",)))["why"]
    assert ("excludes 0" in why) == (count == 5)
    assert (f"no verdict: {count} of at least 5 references" in why) == (count < 5)
    names = [str(n) for n in range(count)]
    one = _measured(tmp_path / "one", [8.0] * count, [0.5] * count, names)
    other = _measured(tmp_path / "other", [9.0] * count, [0.5] * count, names)
    compare(one, other, 100, tmp_path / "table.csv")
    better = {row["metric"]: row["better"] for row in records.read_csv(tmp_path / "table.csv")}
    assert (better["psnr_db"] == "other") == (count == 5) and ("no verdict" in better["psnr_db"]) == (count < 5)


def test_each_metric_has_a_curve_of_its_own(tmp_path: Path) -> None:
    values = {
        ("psnr_db", 0): [9.0, 8.0],
        ("psnr_db", 10): [9.5, 8.5],
        ("ssim", 0): [0.1, 0.2],
        ("ssim", 10): [0.2, 0.3],
    }
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves/lpips.csv").write_text("of another time")
    files = write_curves(values, 100, tmp_path / "curves")
    assert (
        [path.name for path in files]
        == ["psnr_db.csv", "ssim.csv"]
        == sorted(p.name for p in files[0].parent.iterdir())
    )
    rows = records.read_csv(files[1])
    assert [(row["step"], row["mean"]) for row in rows] == [("0", "0.1500"), ("10", "0.2500")]


def test_tables_read_like_the_report(tmp_path: Path) -> None:
    truth = {name: picture() for name in ("r1", "r2")}
    rows = []
    for name, pixels in truth.items():
        records.write_bytes(tmp_path / "references/pictures" / f"{name}.png", png_bytes(Image.fromarray(pixels)))
        for step, drawn in ((0, picture()), (10, pixels)):
            file = f"step-{step:06d}/{name}.png"
            records.write_bytes(tmp_path / "samples" / file, png_bytes(Image.fromarray(drawn)))
            rows.append({"step": step, "reference": name, "seed": 1, "file": file, "prompt": "x"})
    records.write_jsonl(tmp_path / "samples" / "index.jsonl", rows)
    evaluate_version(Evaluate(), tmp_path / "samples", tmp_path / "references", tmp_path)
    table = records.read_csv(tmp_path / "metrics.csv")
    assert list(table[0]) == ["step", "metric", "image1", "image2", "mean", "ci_low", "ci_high"]
    assert [(row["step"], row["metric"]) for row in table] == [
        ("0", "psnr_db"),
        ("10", "psnr_db"),
        ("0", "ssim"),
        ("10", "ssim"),
    ]
    first = table[0]
    assert float(first["mean"]) == pytest.approx((float(first["image1"]) + float(first["image2"])) / 2, abs=1e-4)
    assert float(first["image1"]) == pytest.approx(
        psnr_db(np.asarray(Image.open(tmp_path / "samples/step-000000/r1.png")), truth["r1"]), abs=1e-4
    )
    assert records.read_json(tmp_path / "metrics.json")["best_step"] == 10
    assert records.read_json(tmp_path / "best.json")["psnr_db"]["best"] == 100.0


def test_no_references_is_a_clear_error(tmp_path: Path) -> None:
    records.write_jsonl(tmp_path / "samples" / "index.jsonl", [])
    with pytest.raises(DataError, match="held_out"):
        evaluate_version(Evaluate(), tmp_path / "samples", tmp_path, tmp_path)


def test_feature_distance_is_zero_for_equals_symmetric_and_grows_with_the_change() -> None:
    square = np.full((64, 64, 3), 230, np.uint8)
    square[20:44, 20:44] = (200, 30, 30)
    near, far = square.copy(), np.rot90(square).copy()
    near[20:44, 20:44] = (200, 60, 60)
    far[:32] = (20, 20, 120)
    assert effnet_lite0_distance(square, square) == 0
    assert effnet_lite0_distance(square, far) == pytest.approx(effnet_lite0_distance(far, square), rel=1e-6)
    assert 0 < effnet_lite0_distance(square, near) < effnet_lite0_distance(square, far) <= 4
    with pytest.raises(ValueError, match="data_range is 1"):
        effnet_lite0_distance(square, near, data_range=1)


def test_feature_distance_does_not_depend_on_threads_and_leaves_them() -> None:
    a, b = picture(), picture()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(effnet_lite0_distance(a, b))
        assert torch.get_num_threads() == threads
    assert found[0] == found[1]


def test_the_lowest_distance_is_the_best() -> None:
    values = {("effnet_lite0_distance", step): [v, v] for step, v in ((0, 0.9), (100, 0.5), (200, 0.7))}
    rule = Evaluate(metrics=("effnet_lite0_distance",), choose_by="effnet_lite0_distance")
    assert best_step(values, rule) == 100
    assert explain(values, rule)["rule"].startswith("lowest mean effnet_lite0_distance")


def _measured(folder: Path, psnr: list[float], feature: list[float], references: list[str]) -> Path:
    values = {("psnr_db", 0): [1.0] * len(psnr), ("psnr_db", 100): psnr}
    values |= {("effnet_lite0_distance", 0): [1.0] * len(psnr), ("effnet_lite0_distance", 100): feature}
    records.write_csv(folder / "metrics.csv", metrics_columns(len(psnr)), metrics_rows(values, 100))
    records.write_json(folder / "best.json", {"best_step": 100, "references": references})
    return folder


def test_comparing_two_versions_pairs_their_pictures(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e"]
    one = _measured(tmp_path / "v4", [8.0, 12.0, 16.0, 9.0, 15.0], [0.5, 0.5, 0.6, 0.5, 0.5], names)
    other = _measured(tmp_path / "v4-padded", [8.5, 12.6, 16.4, 9.5, 15.5], [0.4, 0.7, 0.6, 0.4, 0.6], names)
    compare(one, other, 500, tmp_path / "table.csv")
    rows = {row["metric"]: row for row in records.read_csv(tmp_path / "table.csv")}
    # far apart between pictures, yet every picture gained: only the paired interval can see it
    assert float(rows["psnr_db"]["delta"]) == pytest.approx(0.5)
    assert float(rows["psnr_db"]["ci_low"]) >= 0.4
    assert rows["psnr_db"]["better"] == "v4-padded"
    assert rows["effnet_lite0_distance"]["better"] == "neither for sure"
    stranger = _measured(tmp_path / "v9", [1.0] * 5, [1.0] * 5, ["a", "b", "c", "d", "f"])
    with pytest.raises(DataError, match="different references"):
        compare(one, stranger, 100, tmp_path / "none.csv")
