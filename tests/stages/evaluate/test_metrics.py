"""What a metric promises: agreement with its reference, identity, symmetry, range, and no picture put right."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image, ImageFilter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sdlora import choices
from sdlora.config.evaluate import NETWORKS
from sdlora.stages.evaluate.effnet import effnet_lite0_distance
from sdlora.stages.evaluate.metric import Metric, Pixels
from sdlora.stages.evaluate.ms_ssim import ms_ssim, scales_of
from sdlora.stages.evaluate.psnr import psnr_db
from sdlora.stages.evaluate.ssim import ssim

METRICS: dict[str, Metric] = {name: choices.pick(choices.METRICS, name) for name in choices.METRICS}
OF_A_PAIR = [name for name, metric in METRICS.items() if metric.of_a_pair]
EQUAL = {"psnr_db": 100.0, "ssim": 1.0, "ms_ssim": 1.0, "effnet_lite0_distance": 0.0}
RANGE = {"psnr_db": (0, 100), "ssim": (-1, 1), "ms_ssim": (-1, 1), "effnet_lite0_distance": (0, 4)}
WANG = {"data_range": 255, "channel_axis": -1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def noise(seed: int, side: int = 32) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def near(pixels: Pixels, amount: int, seed: int = 9) -> Pixels:
    """The same picture with each value moved by at most so much."""
    moved = pixels.astype(int) + np.random.default_rng(seed).integers(-amount, amount + 1, pixels.shape)
    return np.clip(moved, 0, 255).astype(np.uint8)


def drawn(dataset: str, folder: str, count: int) -> list[Pixels]:
    """Embedded pictures at the embedded base's size."""
    paths = sorted((ROOT / "data/embedded" / dataset / folder).glob("*.png"))[:count]
    return [small(Image.open(path).convert("RGB")) for path in paths]


def small(picture: Image.Image) -> Pixels:
    return np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS))


def blurred(pixels: Pixels, radius: float) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def looking() -> SimpleNamespace:
    """Stands for a network: vectors of length 1, of a picture's corner and of a text's letters."""

    def unit(rows: list[np.ndarray]) -> np.ndarray:
        return np.array([row / np.linalg.norm(row) for row in rows])

    return SimpleNamespace(
        pictures=lambda pictures: unit([picture[0, 0] + 1.0 for picture in pictures]),
        prompts=lambda prompts: unit([np.array([len(prompt), ord(prompt[0]), 1.0]) for prompt in prompts]),
    )


def one(name: str, sample: Pixels, reference: Pixels) -> float:
    return float(METRICS[name]([sample], [reference], ["x"])[0])


@pytest.mark.parametrize("seed", range(3))
def test_psnr_and_ssim_agree_with_scikit_image(seed: int) -> None:
    a = noise(seed)
    b = near(a, 40)
    assert psnr_db(b, a) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-6)
    assert psnr_db(b, a) == pytest.approx(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)), abs=1e-6)
    assert ssim(b, a) == pytest.approx(structural_similarity(a, b, **WANG), abs=1e-6)
    assert ssim(b, a) != pytest.approx(structural_similarity(a, b, data_range=255, channel_axis=-1), abs=1e-6)


@pytest.mark.parametrize(
    ("side", "scales"), [(10, 0), (11, 1), (21, 1), (22, 2), (64, 3), (128, 4), (176, 5), (512, 5)]
)
def test_small_pictures_have_fewer_scales(side: int, scales: int) -> None:
    assert scales_of(side) == scales


@pytest.mark.parametrize("side", [11, 16, 21])
def test_ms_ssim_at_one_scale_is_scikit_images_ssim(side: int) -> None:
    a, b = noise(1, side), noise(2, side)
    assert ms_ssim(near(a, 30), a) == pytest.approx(structural_similarity(a, near(a, 30), **WANG), abs=1e-6)
    assert ms_ssim(b, a) == pytest.approx(structural_similarity(a, b, **WANG), abs=1e-6)


def test_ms_ssim_is_the_papers_product_of_scikit_images_parts() -> None:
    a = drawn("captain", "train", 1)[0]
    b = near(blurred(a, 1.0), 20)
    one, other = a.astype(np.float64), b.astype(np.float64)
    weights = np.array([0.0448, 0.2856, 0.3001]) / (0.0448 + 0.2856 + 0.3001)  # 64 px: three scales
    expected = np.ones(3)
    for weight in weights:
        # with so large a constant luminance is 1, and contrast and structure are left
        constant = {} if weight == weights[-1] else {"K1": 1e7}
        for channel in range(3):
            flat = {**WANG, **constant, "channel_axis": None}
            expected[channel] *= structural_similarity(one[..., channel], other[..., channel], **flat) ** weight
        one, other = (p.reshape(len(p) // 2, 2, len(p) // 2, 2, 3).mean(axis=(1, 3)) for p in (one, other))
    assert ms_ssim(b, a) == pytest.approx(expected.mean(), abs=1e-6)


@pytest.mark.parametrize("name", OF_A_PAIR)
def test_identity_symmetry_and_range(name: str) -> None:
    a, b, c = noise(1), noise(2), near(noise(1), 25)
    assert one(name, a, a) == pytest.approx(EQUAL[name], abs=1e-12)
    assert one(name, a, b) == pytest.approx(one(name, b, a), rel=1e-6)
    low, high = RANGE[name]
    assert all(low <= one(name, a, other) <= high for other in (b, c, 255 - a, np.zeros_like(a)))
    nearer = one(name, c, a) - one(name, b, a)
    assert (nearer > 0) == METRICS[name].higher_is_better


@pytest.mark.parametrize("name", METRICS)
def test_no_picture_is_put_right(name: str) -> None:
    a = noise(1)
    for wrong, told in (
        (noise(1, 48), "shape"), (a.astype(np.float32), "float32"), (a / 255, "float64"), (a[..., :1], "shape"),
        (a.astype(np.int16), "int16"), (a[..., 0], "shape"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            METRICS[name]([wrong, wrong], [a, a], ["x", "x"], training=[a], held_out=[a])
    with pytest.raises(ValueError, match="1 samples, 2 references"):
        METRICS[name]([a], [a, a], ["x"], training=[a], held_out=[a])


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller than the window"):
        ms_ssim(noise(1, 10), noise(2, 10))


@pytest.mark.parametrize("name", METRICS)
def test_values_are_one_a_sample_and_finite(name: str) -> None:
    samples, references = [noise(n) for n in range(4)], [noise(n) for n in (10, 10, 11, 11)]
    given = {
        "training": [noise(20)], "held_out": [noise(30), noise(31)], "trigger": "x",
        "untriggered": [(noise(n), noise(n + 1)) for n in range(4)],
        "describe": lambda _: "a", "learner": SimpleNamespace(losses=lambda pictures, _: np.ones(len(pictures))),
        **dict.fromkeys(NETWORKS, looking()),
    }  # fmt: skip
    found = METRICS[name](samples, references, ["x", "x", "y", "y"], **given)
    assert found.shape == (4,) and np.isfinite(found).all()
    assert METRICS[name].name == name


def test_feature_distance_grows_with_the_change() -> None:
    square = np.full((64, 64, 3), 230, np.uint8)
    square[20:44, 20:44] = (200, 30, 30)
    close, far = square.copy(), np.rot90(square).copy()
    close[20:44, 20:44] = (200, 60, 60)
    far[:32] = (20, 20, 120)
    assert 0 < effnet_lite0_distance(square, close) < effnet_lite0_distance(square, far) <= 4


def test_feature_distance_does_not_depend_on_threads_and_leaves_them() -> None:
    from sdlora.stages.evaluate import effnet

    a, b, found = noise(1), noise(2), []
    for threads in (1, 2):
        effnet._known.clear()
        torch.set_num_threads(threads)
        found.append(effnet_lite0_distance(a, b))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["captain", "pixel-avatars"])
def test_copies_of_training_pictures_are_memorised_and_new_pictures_are_not(dataset: str) -> None:
    metric = METRICS["memorisation_ratio"]
    training, held_out = drawn(dataset, "train", 25), drawn(dataset, "references", 10)
    copies = [blurred(picture[:, :: -1 if n % 2 else 1], 0.5) for n, picture in enumerate(training[:10])]
    assert metric.alarm is not None
    values = metric(copies, held_out, ["x"] * 10, training=training, held_out=held_out)
    told = metric.alarm(values.tolist(), [1.0] * 10, 2000)
    assert values.mean() < 1 and told and told.startswith("memorised")
    exact = metric(
        [np.ascontiguousarray(training[3][:, ::-1])] * 2,
        held_out[:2],
        ["x"] * 2,
        training=training,
        held_out=held_out[:2],
    )
    assert exact == pytest.approx([0, 0], abs=1e-6), "a mirrored copy is a copy"
    # others of the held-out pictures, which nothing has learnt
    new = metric(held_out[5:], held_out[:5], ["x"] * 5, training=training, held_out=held_out[:5])
    assert metric.alarm(new.tolist(), [1.0] * 5, 2000) is None


def test_memorisation_says_what_it_lacks() -> None:
    a = noise(1)
    with pytest.raises(ValueError, match="not 1 and 1"):
        METRICS["memorisation_ratio"]([a, a], [a, a], ["x", "x"], training=[a], held_out=[a, a])
    with pytest.raises(ValueError, match="not 2 and 0"):
        METRICS["memorisation_ratio"]([a, a], [a, noise(2)], ["x", "x"], training=[], held_out=[a, noise(2)])


def test_a_mode_collapse_is_told() -> None:
    metric = METRICS["effnet_lite0_diversity"]
    pictures, prompts = drawn("captain", "train", 12), [str(n // 2) for n in range(12)]
    lively = metric(pictures, pictures, prompts)
    collapsed = [near(pictures[n // 2 * 2], 1, seed=n) for n in range(12)]
    dull = metric(collapsed, pictures, prompts)
    assert metric.alarm is not None
    assert metric.alarm(lively.tolist(), lively.tolist(), 2000) is None
    told = metric.alarm(dull.tolist(), lively.tolist(), 2000)
    assert told and told.startswith("collapsed")
    assert metric([pictures[0]] * 2, pictures[:2], ["x", "x"]) == pytest.approx([0, 0], abs=1e-12)
    with pytest.raises(ValueError, match="two samples of each prompt"):
        metric(pictures[:3], pictures[:3], ["x", "x", "y"])
