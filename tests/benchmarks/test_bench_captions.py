"""`python -m benchmarks.captions`: captions of a batch are held against those of pictures alone."""

import re
import sys

import pytest
from helpers import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT))

from benchmarks import captions

from sdlora.config.caption import Caption


@pytest.mark.slow
def test_each_batch_size_has_a_line() -> None:
    for line, size in zip(captions.compare(3, (1, 2), num_beams=1), (1, 2), strict=True):
        assert re.fullmatch(rf"batch_size {size}: [\d.]+ pictures per CPU second, 0 of 3 captions differ", line)


def test_a_caption_that_differs_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def captioned(pictures: list[Image.Image], settings: Caption) -> tuple[list[str], float]:
        return [str(number // 4 * settings.batch_size) for number in range(len(pictures))], 2.0

    monkeypatch.setattr(captions, "captioned", captioned)
    (alone, together) = captions.compare(6, (1, 8), num_beams=1)
    assert alone == "batch_size 1: 3.0 pictures per CPU second, 0 of 6 captions differ"
    assert together == "batch_size 8: 3.0 pictures per CPU second, 2 of 6 captions differ"
