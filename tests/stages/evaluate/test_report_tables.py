"""Tables as the report prints them: the same means from the same columns, the same layout from pictures."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora import choices, records
from sdlora.config.evaluate import Evaluate
from sdlora.images.pictures import png_bytes
from sdlora.stages.choose.choose import choose_by_samples
from sdlora.stages.evaluate.psnr import psnr_db
from sdlora.stages.evaluate.report_tables import columns_of, table_row, write_tables
from sdlora.stages.evaluate.run import evaluate_version

#: The report's tables 1 to 4: step, image1 to image5, mean.
REPORT = {
    "table 1, PSNR": """
        cat0 7.791 5.873 5.212 5.981 8.779 6.727
        cat100 8.339 5.672 5.947 6.942 8.516 7.083
        cat200 7.753 4.984 5.607 6.325 7.885 6.511
        cat300 6.579 5.483 4.626 5.115 7.371 5.835
        cat400 7.871 5.611 5.413 6.257 8.409 6.712
        cat500 7.469 5.602 4.967 5.792 8.551 6.477
        cat600 7.592 5.571 5.275 6.031 8.211 6.536""",
    "table 2, SSIM": """
        cat0 0.134 0.05 0.123 0.141 0.136 0.117
        cat100 0.155 0.026 0.137 0.158 0.158 0.127
        cat200 0.128 0.055 0.124 0.138 0.123 0.113
        cat300 0.242 0.094 0.24 0.254 0.253 0.217
        cat400 0.094 0.023 0.088 0.099 0.096 0.08
        cat500 0.122 0.036 0.116 0.122 0.137 0.107
        cat600 0.086 0.013 0.076 0.088 0.09 0.071""",
    "table 3, PSNR": """
        miku0 4.347 6.405 5.804 6.977 7.575 6.222
        miku50 4.552 7.09 6.407 7.781 8.319 6.83
        miku100 4.908 6.254 5.617 7.148 7.937 6.373
        miku150 3.924 6.951 6.223 7.431 7.717 6.449
        miku200 4.611 6.294 5.77 7.163 7.691 6.306
        miku250 3.739 6.554 6.381 6.997 7.197 6.174""",
    "table 4, SSIM": """
        miku0 0.076 0.194 0.369 0.336 0.233 0.242
        miku50 0.075 0.234 0.387 0.349 0.246 0.258
        miku100 0.072 0.171 0.345 0.325 0.22 0.227
        miku150 0.072 0.199 0.378 0.342 0.223 0.243
        miku200 0.075 0.194 0.355 0.33 0.235 0.238
        miku250 0.083 0.201 0.384 0.328 0.217 0.243""",
}
#: Rows whose printed mean is not that of their printed columns (it may have been taken before rounding): ours.
OFF = {("table 1, PSNR", "cat500"): "6.476", ("table 2, SSIM", "cat200"): "0.114"}


@pytest.mark.parametrize("table", REPORT)
def test_means_are_the_reports(table: str) -> None:
    for line in REPORT[table].split("\n")[1:]:
        label, *columns, mean = line.split()
        row = table_row(label, [float(value) for value in columns])
        assert row[0] == label and [float(value) for value in row[1:-1]] == [float(value) for value in columns]
        printed = f"{float(mean):.3f}"
        assert row[-1] == OFF.get((table, label), printed)
        assert ((table, label) in OFF) == (row[-1] != printed)
        assert float(row[-1]) == pytest.approx(float(mean), abs=0.0011), "off by rounding alone"


def test_layout_and_values(tmp_path: Path) -> None:
    pictures = [np.random.default_rng(n).integers(0, 256, (32, 32, 3), np.uint8) for n in range(8)]
    metrics = {name: choices.pick(choices.METRICS, name) for name in ("psnr_db", "ssim", "memorisation_ratio")}
    (tmp_path / "lpips.csv").write_text("of another time")
    files = write_tables("pixel", {100: pictures[6], 0: pictures[5]}, pictures[:5], metrics, tmp_path)
    assert [path.name for path in files] == ["psnr_db.csv", "psnr_db.md", "ssim.csv", "ssim.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)
    table = records.read_csv(tmp_path / "psnr_db.csv")
    assert list(table[0]) == ["step", "image1", "image2", "image3", "image4", "image5", "mean"] == columns_of(5)
    assert [row["step"] for row in table] == ["pixel0", "pixel100"]
    values = [psnr_db(pictures[6], reference) for reference in pictures[:5]]
    assert [*table[1].values()] == table_row("pixel100", values)
    lines = (tmp_path / "psnr_db.md").read_text().splitlines()
    assert lines[0] == "| step | image1 | image2 | image3 | image4 | image5 | mean |"
    assert lines[3] == f"| {' | '.join(table[1].values())} |" and len(lines) == 4


def test_the_first_prompt_is_compared_with_five_references(tmp_path: Path) -> None:
    random, rows = np.random.default_rng(0), []
    for number in range(6):
        truth = random.integers(0, 256, (32, 32, 3), np.uint8)
        records.write_bytes(tmp_path / f"set/pictures/r{number}.png", png_bytes(Image.fromarray(truth)))
        for step, seed in ((0, 1), (0, 2), (50, 1), (50, 2)):
            drawn = truth if (number, step, seed) == (0, 50, 1) else random.integers(0, 256, (32, 32, 3), np.uint8)
            file = f"step-{step:06d}/r{number}-seed{seed}.png"
            records.write_bytes(tmp_path / "miku/samples" / file, png_bytes(Image.fromarray(drawn)))
            rows.append({"step": step, "reference": f"r{number}", "seed": seed, "file": file, "prompt": f"p{number}"})
    records.write_jsonl(tmp_path / "miku/samples/index.jsonl", rows)
    settings = Evaluate(metrics=("psnr_db",), choose_by="psnr_db")
    choice = choose_by_samples(settings, tmp_path / "miku", tmp_path / "set", [f"r{number}" for number in range(6)])
    records.write_json(tmp_path / "miku/choice.json", asdict(choice))
    files = evaluate_version(settings, tmp_path / "miku", tmp_path / "set")
    assert {tmp_path / "miku/tables/psnr_db.csv", tmp_path / "miku/tables/psnr_db.md"} <= {*files}
    table = records.read_csv(tmp_path / "miku/tables/psnr_db.csv")
    assert [row["step"] for row in table] == ["miku0", "miku50"] and "image6" not in table[0]
    assert table[1]["image1"] == "100.000", "the first reference's own prompt, drawn with the first seed"
