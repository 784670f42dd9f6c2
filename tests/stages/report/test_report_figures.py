"""What the page shows of a version: the test's figures, and p-values corrected over the versions that have a test."""

from typing import Any

import pytest

from sdlora.stages.caption.recipe import NOBODY
from sdlora.stages.evaluate.statistics import LEVEL
from sdlora.stages.report.data import correct, figures_of
from sdlora.stages.report.dataset import author


def best(p: float, tested: bool = True) -> dict[str, Any]:
    chose = {"figures": {"ssim": {"best": 0.9, "delta": 0.5, "ci_low": 0.4, "ci_high": 0.6, "p": 0.0001}}}
    test = {"figures": {"ssim": {"best": 0.7, "delta": 0.1, "ci_low": 0.01, "ci_high": 0.2, "p": p}}}
    verdict = "better" if tested else "untested"
    return {"validation": chose, "test": test if tested else None, "verdict": verdict}


def test_what_chose_is_shown_only_where_there_is_no_test_and_then_proves_nothing() -> None:
    assert figures_of(best(0.02))["ssim"] == {"best": 0.7, "delta": 0.1, "ci_low": 0.01, "ci_high": 0.2, "p": 0.02}
    assert figures_of(best(0.02, tested=False))["ssim"]["p"] is None
    assert figures_of(best(0.02, tested=False))["ssim"]["best"] == 0.9


def test_p_values_are_corrected_over_the_versions_of_a_metric() -> None:
    shown = [figures_of(best(p)) for p in (0.01, 0.04, 0.03)]
    untested, other = figures_of(best(0.001, tested=False)), {"psnr_db": {"p": 0.04}}
    correct([*shown, untested, other])
    assert [figures["ssim"]["p"] for figures in shown] == [0.03, 0.06, 0.06]
    alone = figures_of(best(0.050004))
    correct([alone])
    assert (alone["ssim"]["p"] or 0) > LEVEL, "four decimals would call it significant"
    assert untested["ssim"]["p"] is None, "it is no member of the family"
    assert other["psnr_db"]["p"] == 0.04, "a family of its own"


@pytest.mark.parametrize(
    ("origin", "said"), [("sha256:1", "by BLIP"), ("override", "written by hand"), (NOBODY, "is the trigger alone")]
)
def test_a_caption_says_who_wrote_it(origin: str, said: str) -> None:
    assert author(origin) == said
