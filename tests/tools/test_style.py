"""The held-out style is recognised in its own pictures and in no others."""

from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image
from tools.tiny_base import datasets, style, styles, world

from sdlora import records
from sdlora.config.caption import Caption
from sdlora.errors import DataError
from sdlora.images.pictures import png_bytes
from sdlora.stages.caption.blip import Blip


@pytest.fixture(scope="module")
def known() -> style.Candidates:
    return style.candidates(64)


@pytest.mark.slow
def test_the_candidates_are_as_many_of_each_style(known: style.Candidates) -> None:
    assert {name: known.styles.count(name) for name in known.styles} == dict.fromkeys(
        (styles.HELD_OUT_STYLE, *styles.STYLES), style.EACH
    )


@pytest.mark.slow
def test_the_style_is_recognised_in_its_own_pictures_alone(known: style.Candidates) -> None:
    own = [world.draw(picture, 64) for picture in datasets.pixel_avatars(6, 0)]
    assert style.recognised(own, known) == 1.0
    others = [world.draw(world.sample(index, 0), 64) for index in range(12)]
    assert style.recognised(others, known) == 0.0
    assert style.recognised([own[0], others[0]], known) == 0.5


def test_blip_tells_the_style_in_its_own_pictures_alone() -> None:
    own = [world.draw(picture, 64) for picture in datasets.pixel_avatars(3, 0)]
    others = [world.draw(world.sample(index, 0), 64) for index in range(3)]
    blip = Blip(str(ROOT / "models/tiny-blip"), None, Caption(max_new_tokens=60), 1)
    assert (style.told(own, blip), style.told(others, blip)) == (1.0, 0.0)


def test_samples_are_read_by_step(tmp_path: Path) -> None:
    picture = Image.fromarray(np.full((64, 64, 3), 7, np.uint8))
    records.write_bytes(tmp_path / "samples/step-000100/a.png", png_bytes(picture))
    records.write_jsonl(tmp_path / "samples/index.jsonl", [{"step": 100, "file": "step-000100/a.png"}])
    assert np.array_equal(np.asarray(style.read_samples(tmp_path, 100)[0]), np.asarray(picture))
    with pytest.raises(DataError, match="no samples of step 0"):
        style.read_samples(tmp_path, 0)


def test_like_is_compared_with_like(tmp_path: Path) -> None:
    """Steps 0 and 100 have pictures of the references that report; step 200 has one of those that choose."""
    shades = {"samples": {0: 1, 100: 2, 200: 3}, "test_samples": {0: 4, 100: 5}}
    for folder, pictures in shades.items():
        for step, shade in pictures.items():
            picture = Image.fromarray(np.full((8, 8, 3), shade, np.uint8))
            records.write_bytes(tmp_path / folder / f"{step}.png", png_bytes(picture))
        records.write_jsonl(tmp_path / folder / "index.jsonl", [{"step": n, "file": f"{n}.png"} for n in pictures])

    def shades_of(step: int, beside: int) -> list[int]:
        return [int(np.asarray(picture)[0, 0, 0]) for picture in style.read_samples(tmp_path, step, beside)]

    assert (shades_of(0, 100), shades_of(100, 0)) == ([4], [5])
    assert (shades_of(0, 200), shades_of(200, 0)) == ([1], [3])
