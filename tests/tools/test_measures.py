"""What the base is measured by, on figures and drawings whose answer is known."""

from pathlib import Path

import numpy as np
import pytest
from tools.tiny_base import cards, measures, styles, world
from tools.tiny_base.measures import attribute_f1, cmmd, nearest_shares, psnr_in, same_style
from tools.tiny_base.recipe import BaseRecipe

from sdlora import records


def test_nearest_truth_counts_own_and_style() -> None:
    captions = ["critter, red", "critter, blue", "dylan face, red"]
    right = np.array([[0.1, 0.5, 0.9], [0.5, 0.1, 0.9], [0.9, 0.8, 0.1]])
    assert nearest_shares(right, captions) == {"own": 1.0, "style": 1.0}
    # the first is nearer to its neighbour of the same style, the last to another style
    wrong = np.array([[0.6, 0.5, 0.9], [0.5, 0.1, 0.9], [0.1, 0.8, 0.2]])
    assert nearest_shares(wrong, captions) == {"own": 0.6667, "style": 0.6667}
    assert nearest_shares(wrong, captions, [True, True, False]) == {"own": 0.5, "style": 1.0}


def test_same_style() -> None:
    assert same_style(["critter, red", "toon head, blue"], ["critter, blue", "dylan face, blue"]) == 0.5


def test_attribute_f1() -> None:
    assert attribute_f1(["red hair, blue top"], ["red hair, blue top"]) == 1.0
    assert attribute_f1(["red hair, blue top"], ["blue hair, red top"]) == 0.0, "words are not enough"
    assert attribute_f1(["red hair"], ["red hair, blue top"]) == pytest.approx(2 / 3, abs=1e-4)
    assert attribute_f1(["red hair", ""], ["red hair", "blue top"]) == 0.5
    assert attribute_f1(["red hair, tan cap"], ["red hair, tan straw hat"], aside=("cap", "straw hat")) == 1.0


def test_cmmd_is_nothing_for_one_distribution_and_grows_with_the_distance() -> None:
    source = np.random.default_rng(0)
    truths, same = source.normal(size=(300, 8)), source.normal(size=(300, 8))
    assert abs(cmmd(same, truths)) < 3
    near, far = cmmd(same + 0.3, truths), cmmd(same + 1.0, truths)
    assert 5 < near < far
    assert cmmd(100 * (same + 0.3), 100 * truths) == pytest.approx(near, abs=1e-2), "no scale"
    assert cmmd(np.repeat(truths[:1], 300, 0), truths) > 100, "one picture again and again"
    # by the definition, pair by pair
    a, b = same[:5], truths[:6]
    among = [float(np.square(b[i] - b[j]).sum()) for i in range(6) for j in range(6) if i != j]
    width = float(np.median(among))

    def kernel(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.exp(-np.square(one - other).sum() / (2 * width)))

    within = [np.mean([kernel(p, q) for i, p in enumerate(s) for j, q in enumerate(s) if i != j]) for s in (a, b)]
    across = np.mean([kernel(p, q) for p in a for q in b])
    assert cmmd(a, b) == pytest.approx(1000 * (sum(within) - 2 * across), abs=1e-2)


@pytest.mark.slow
def test_features_tell_another_world_from_this_one() -> None:
    drawn = {
        name: np.stack([np.asarray(world.draw(world.sample(n, seed, style), 64)) for n in range(16)])
        for name, seed, style in (("truth", 0, "toon-head"), ("same", 1, "toon-head"), ("other", 1, "critters"))
    }
    vectors = {name: measures.feature_vectors(pictures) for name, pictures in drawn.items()}
    assert cmmd(vectors["same"], vectors["truth"]) < 0.3 * cmmd(vectors["other"], vectors["truth"])


def test_psnr_of_faces_sees_faces_alone() -> None:
    truths = np.zeros((2, 8, 8, 3), np.uint8)
    decoded = truths.copy()
    decoded[0, :2] = 255  # outside the first box
    decoded[0, 4:6] = 10
    boxes = [(-3, 4, 20, 6), None]
    assert psnr_in(decoded, truths, boxes) == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)


def test_cards_are_written_from_figures(tmp_path: Path) -> None:
    nearest = {"nearest_truth_by_pixels": {"own": 0.95, "style": 1.0}}
    features = {"nearest_truth_by_effnet_lite0": {"own": 0.92, "style": 1.0}, "cmmd_effnet_lite0": 1.5}
    quality = {
        "pictures": 200, "vae": {"psnr_db": 31.0, "ssim": 0.95, "face_psnr_db": 31.1}, "all": {**nearest, **features},
        "small": {"among_all": {"own": 0.9}, "among_small": {"own": 0.8}}, "hires_96_px": nearest,
        "as_v8_draws": {**nearest, **features},
        "blip": {"attribute_f1": 0.9, "portraits_attribute_f1": {"captain": 0.86, "gardener": 0.87},
                 "style_named": {"drawn": 0.99, "truth": 1.0}},
    }  # fmt: skip
    for name in ("tiny-sd", "tiny-blip"):
        records.write_bytes(tmp_path / name / "model.safetensors", b"weights")
    cards.write(tmp_path, quality, BaseRecipe().from_another(), "Trained on one card.")
    text = (tmp_path / "tiny-sd/README.md").read_text("utf-8")
    assert "| UNet, text encoder | 5400 |" in text, "the recipe that it was made with"
    assert "31.1 dB" in text and "Trained on one card." in text and "{" not in text
    assert all(styles.attribution(style) in text for style in styles.STYLES)
    read = (tmp_path / "tiny-blip/README.md").read_text("utf-8")
    assert "0.86" in read and styles.attribution(styles.HELD_OUT_STYLE) in read
    assert "It went on from a BLIP that had learnt 9000 steps" in read
