"""Metrics, tables and the choice of a checkpoint."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sdlora import records
from sdlora.errors import DataError
from sdlora.evaluate import evaluate_version
from sdlora.evaluate.choose import best_step, explain
from sdlora.evaluate.psnr import psnr_db
from sdlora.evaluate.run import at_size_of
from sdlora.evaluate.ssim import ssim
from sdlora.evaluate.tables import bootstrap_interval, difference
from sdlora.params import Evaluate
from sdlora.pictures import png_bytes

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


def test_tables_read_like_the_report(tmp_path: Path) -> None:
    truth = {name: picture() for name in ("r1", "r2")}
    rows = []
    for name, pixels in truth.items():
        records.write_bytes(tmp_path / "references" / f"{name}.png", png_bytes(Image.fromarray(pixels)))
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
