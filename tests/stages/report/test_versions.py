"""The table of all versions, as Markdown."""

from pathlib import Path

import pytest

from sdlora.cli import main
from sdlora.stages.report.versions import gain, markdown

ROW = {
    "version": "v8", "base": "tiny", "dataset": "captain", "fit": "pad", "rank": "64", "alpha": "64",
    "learning_rate": "0.00015", "steps": "1200", "optimizer": "adamw8bit", "hires": "True", "best_step": "800",
    "references": "10", "tested_on": "5", "verdict": "better",
    "psnr_db_best": "15.6", "psnr_db_delta": "1.7642", "psnr_db_ci_low": "0.8462", "psnr_db_ci_high": "2.7327",
    "psnr_db_p": "0.012",
    "ssim_best": "0.67", "ssim_delta": "0.1249", "ssim_ci_low": "-0.0719", "ssim_ci_high": "0.1908", "ssim_p": "0.21",
}  # fmt: skip


def test_every_version_is_a_row_with_its_gains() -> None:
    head, rule, *rows = markdown([ROW, {**ROW, "version": "v9"}]).splitlines()
    assert head.startswith("| version | dataset |") and head.endswith("| ssim | against step 0 |")
    assert head.count("|") == rule.count("|") == rows[0].count("|") == rows[1].count("|")
    assert rows[0].startswith("| v8 | captain | pad | 64 |") and rows[1].startswith("| v9 |")
    assert "| 15.6 | **+1.764 [0.846, 2.733]** | 0.67 | +0.125 [-0.072, 0.191] |" in rows[0]


def test_only_what_a_test_has_found_is_bold() -> None:
    row = {"d_delta": "-0.1", "d_ci_low": "-0.2", "d_ci_high": "-0.05", "d_p": "0.05"}
    assert gain(row, "d") == "**-0.100 [-0.200, -0.050]**"
    assert gain({**row, "d_p": "0.06"}, "d") == "-0.100 [-0.200, -0.050]", "corrected over the versions"
    assert gain({**row, "d_p": ""}, "d") == "-0.100 [-0.200, -0.050]", "without a test it proves nothing"
    assert gain({"d_delta": "", "d_ci_low": "", "d_ci_high": "", "d_p": ""}, "d") == ""


def test_small_differences_keep_two_digits() -> None:
    """Losses of 0.1 that fell by 0.00004: three decimals would say that nothing is 0.000 and sure."""
    row = {"loss_delta": "-4e-05", "loss_ci_low": "-0.0000421", "loss_ci_high": "0", "loss_p": "0.01"}
    assert gain(row, "loss") == "**-0.000040 [-0.000042, 0.000]**"


def test_v10_comes_after_v9() -> None:
    rows = markdown([{**ROW, "version": name} for name in ("pixel", "v10", "v9")]).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| pixel", "| v9", "| v10"]


@pytest.mark.parametrize("content", ["", "step,metric\n0,ssim\n", "version,ssim_best\nv8,1\n", "\x00\xff"])
def test_a_table_that_is_none_of_versions_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(SystemExit, match=r"error: .*table\.csv: this is no table of all versions"):
        main(["versions", str(tmp_path / "table.csv")])
