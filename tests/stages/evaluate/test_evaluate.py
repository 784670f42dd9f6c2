"""From samples and references to tables."""

from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedders import save_small_clip, save_small_dinov2
from helpers import ROOT
from PIL import Image, ImageFilter

from sdlora import choices, records
from sdlora.config.evaluate import Evaluate
from sdlora.errors import DataError
from sdlora.images.pictures import png_bytes, read_rgb
from sdlora.stages.choose.choose import choose_by_samples
from sdlora.stages.evaluate import run
from sdlora.stages.evaluate.metric import Metric
from sdlora.stages.evaluate.psnr import psnr_db
from sdlora.stages.evaluate.recipe import EvaluateRecipe, Network
from sdlora.stages.evaluate.run import Evaluator, at_size_of, evaluate_version, write_curves
from sdlora.stages.sample.parts import FOLDERS, TEST, VALIDATION, all_drawn, drawn, split

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)


def picture() -> np.ndarray:
    return RANDOM.integers(0, 256, (32, 32, 3), np.uint8)


def test_sizes_are_never_put_right_in_silence() -> None:
    small, large, wide = (Image.new("RGB", size) for size in ((32, 32), (48, 48), (48, 32)))
    assert at_size_of(large, np.asarray(small)).shape == (32, 32, 3)
    for sample, reference in ((small, large), (wide, small)):
        with pytest.raises(DataError, match="cannot be compared"):
            at_size_of(sample, np.asarray(reference))


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
    assert [(row["step"], row["mean"]) for row in rows] == [("0", "0.150000"), ("10", "0.250000")]


def test_tables_read_like_the_report(tmp_path: Path) -> None:
    truth = {name: picture() for name in ("r1", "r2")}
    rows = []
    for name, pixels in truth.items():
        records.write_bytes(tmp_path / "references/pictures" / f"{name}.png", png_bytes(Image.fromarray(pixels)))
        for step, pixels_of in ((0, picture()), (10, pixels)):
            file = f"step-{step:06d}/{name}.png"
            records.write_bytes(tmp_path / "samples" / file, png_bytes(Image.fromarray(pixels_of)))
            rows.append({"step": step, "reference": name, "seed": 1, "file": file, "prompt": "x"})
    records.write_jsonl(tmp_path / "samples" / "index.jsonl", rows)
    evaluated(tmp_path, Evaluate())
    table = records.read_csv(tmp_path / "metrics.csv")
    assert list(table[0]) == ["step", "metric", "image1", "image2", "mean", "ci_low", "ci_high"]
    metrics = ("effnet_lite0_distance", "psnr_db", "ssim")
    assert [(row["step"], row["metric"]) for row in table] == [(step, name) for name in metrics for step in ("0", "10")]
    first = table[2]
    assert float(first["mean"]) == pytest.approx((float(first["image1"]) + float(first["image2"])) / 2, abs=1e-4)
    assert float(first["image1"]) == pytest.approx(
        psnr_db(np.asarray(Image.open(tmp_path / "samples/step-000000/r1.png")), truth["r1"]), abs=1e-4
    )
    assert records.read_json(tmp_path / "metrics.json")["best_step"] == 10
    assert records.read_json(tmp_path / "metrics.json")["psnr_db"]["best"] == 100.0
    best = records.read_json(tmp_path / "best.json")
    assert best["validation"]["figures"]["psnr_db"]["best"] == 100.0 and best["test"] is None
    assert best["references"] == best["validation"]["references"] == ["r1", "r2"]


def test_no_references_is_a_clear_error(tmp_path: Path) -> None:
    records.write_jsonl(tmp_path / "samples" / "index.jsonl", [])
    with pytest.raises(DataError, match="held_out"):
        evaluated(tmp_path, Evaluate())


def evaluated(folder: Path, settings: Evaluate, chosen: int | None = None) -> list[Path]:
    """What the stages `choose` and `evaluate` do with what was drawn."""
    names = sorted({row["reference"] for row in all_drawn(folder)})
    choice = choose_by_samples(settings, folder, folder / "references", names, chosen)
    records.write_json(folder / "choice.json", asdict(choice))
    return evaluate_version(settings, folder, folder / "references")


def lay(
    folder: Path,
    references: dict[str, np.ndarray],
    made: dict[int, dict[str, np.ndarray]],
    seeds: tuple[int, ...] = (1,),
    tested: tuple[int, ...] | None = None,
) -> None:
    """Samples and references as the stages before write them.

    Args:
        folder: The version's.
        references: By id.
        made: Step -> the picture of each reference.
        seeds: Of test references; with each further one the picture is moved by a pixel.
        tested: Steps that draw the test references; None: all of them.
    """
    for name, pixels in references.items():
        records.write_bytes(folder / "references/pictures" / f"{name}.png", png_bytes(Image.fromarray(pixels)))
    for part, names in zip(FOLDERS, split(sorted(references), 0.5), strict=True):
        rows = []
        for step, pictures in made.items():
            if part == TEST and tested is not None and step not in tested:
                continue
            for (place, seed), name in product(enumerate(seeds if part == TEST else seeds[:1]), names):
                file = f"step-{step:06d}/{name}-seed{seed}.png"
                picture = Image.fromarray(np.roll(pictures[name], place, axis=0))
                records.write_bytes(folder / FOLDERS[part] / file, png_bytes(picture))
                rows.append({"step": step, "reference": name, "seed": seed, "file": file, "prompt": name})
        records.write_jsonl(folder / FOLDERS[part] / "index.jsonl", rows)


def references_of(dataset: str) -> dict[str, np.ndarray]:
    """Ten embedded references at the embedded base's size."""
    paths = sorted((ROOT / "data/embedded" / dataset / "references").glob("*.png"))[:10]
    scaled = {path.stem: Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS) for path in paths}
    return {name: np.asarray(picture) for name, picture in scaled.items()}


@pytest.mark.parametrize("dataset", ["captain", "pixel-avatars"])
def test_a_planted_blur_does_not_win(dataset: str, tmp_path: Path) -> None:
    truth = references_of(dataset)
    sharp = {name: np.roll(pixels, (3, 4), (0, 1)) for name, pixels in truth.items()}
    blurred = {
        name: np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3))) for name, pixels in sharp.items()
    }
    base = {name: np.full_like(pixels, 128) for name, pixels in truth.items()}
    lay(tmp_path, truth, {0: base, 100: blurred, 200: sharp, 300: blurred})
    chosen = {}
    for metric in ("psnr_db", Evaluate().choose_by[0]):
        settings = Evaluate(metrics=(metric,), choose_by=metric)
        evaluated(tmp_path, settings)
        chosen[metric] = records.read_json(tmp_path / "best.json")["best_step"]
    assert chosen == {"psnr_db": 100, Evaluate().choose_by[0]: 200}, "PSNR is what the blur was planted for"


def test_an_over_fit_is_flagged_beside_the_choice(tmp_path: Path) -> None:
    truth = references_of("pixel-avatars")
    paths = sorted((ROOT / "data/embedded/pixel-avatars/train").glob("*.png"))[:10]
    learnt = [np.asarray(Image.open(p).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)) for p in paths]
    base = {name: np.roll(pixels, 9, axis=0) for name, pixels in truth.items()}
    lay(tmp_path, truth, {0: base, 100: dict(zip(truth, learnt, strict=True))})
    for number, pixels in enumerate(learnt):
        records.write_bytes(tmp_path / f"references/pictures/t{number}.png", png_bytes(Image.fromarray(pixels)))
    rows = [{"split": "train", "file": f"pictures/t{number}.png"} for number in range(len(learnt))]
    records.write_jsonl(tmp_path / "references/fit.jsonl", [*rows, {"split": "reference", "file": "none"}])
    settings = Evaluate(metrics=("psnr_db", "memorisation_ratio"), choose_by="psnr_db")
    evaluated(tmp_path, settings)
    (warning,) = records.read_json(tmp_path / "best.json")["warnings"]
    assert warning.startswith("memorised: samples are 0.00 times as far")


def test_what_a_metric_lacks_is_a_clear_error(tmp_path: Path) -> None:
    truth = {"r1": picture()}
    lay(tmp_path, truth, {0: truth, 10: truth})
    settings = Evaluate(metrics=("memorisation_ratio",), choose_by="memorisation_ratio")
    with pytest.raises(DataError, match="needs two held-out pictures"):
        evaluated(tmp_path, settings)


def test_means_are_over_one_part_of_the_references(tmp_path: Path) -> None:
    """Steps 100 and 200 equal the references that choose; the chosen one's test pictures are drawn with three seeds."""
    truth = references_of("captain")
    names = sorted(truth)
    base = {name: np.full_like(pixels, 128) for name, pixels in truth.items()}
    lay(tmp_path, truth, {0: base, 100: truth, 200: truth}, seeds=(7, 8, 9), tested=(0, 100))
    evaluated(tmp_path, Evaluate(metrics=("psnr_db",), choose_by="psnr_db"))
    rows = {int(row["step"]): row for row in records.read_csv(tmp_path / "metrics.csv")}
    assert [*rows] == [0, 100, 200], "one row a checkpoint"
    assert {row["mean_over"] for row in rows.values()} == {"image1-image5 seeds 7"}
    assert [rows[step]["test_over"] for step in rows] == [*["image6-image10 seeds 7 8 9"] * 2, ""]
    assert [float(rows[step]["mean"]) for step in (100, 200)] == [100.0, 100.0], "test pictures would lower it"
    assert rows[200]["test_mean"] == rows[200]["image6"] == rows[200]["image10"] == "" != rows[200]["image5"]
    assert (rows[100]["image5"], rows[200]["image5"]) == ("100.0000", "100.0000")
    pictures = records.read_csv(tmp_path / "pictures.csv")
    assert len(pictures) == 3 * 5 + 2 * 5 * 3
    own = [row for row in pictures if (row["reference"], row["step"]) == (names[5], "100")]
    assert [(row["part"], row["seed"]) for row in own] == [("test", seed) for seed in "789"]
    values = [float(row["psnr_db"]) for row in own]
    assert values[0] == 100.0 > values[1] and (tmp_path / own[2]["file"]).exists()
    assert float(rows[100]["image6"]) == pytest.approx(np.mean(values), abs=1e-3)
    images = [float(rows[100][f"image{number}"]) for number in range(6, 11)]
    assert float(rows[100]["test_mean"]) == pytest.approx(np.mean(images), abs=1e-3)
    best = records.read_json(tmp_path / "best.json")
    assert (best["validation"]["references"], best["test"]["references"]) == (names[:5], names[5:])
    assert (best["validation"]["seeds"], best["test"]["seeds"]) == ([7], [7, 8, 9])
    assert best["test"]["figures"]["psnr_db"]["best"] == pytest.approx(float(rows[100]["test_mean"]), abs=1e-3)


def test_what_chose_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = references_of("captain")
    base = {name: np.full_like(pixels, 128) for name, pixels in truth.items()}
    lay(tmp_path, truth, {0: base, 100: truth}, tested=(0, 100))
    settings, measure, asked = Evaluate(metrics=("psnr_db", "ssim"), choose_by="psnr_db"), Metric.__call__, []

    def noted(metric: Metric, samples: Any, references: Any, prompts: Any, **given: Any) -> Any:
        asked.extend((metric.name, prompt) for prompt in prompts if prompt)  # the report's tables name no prompt
        return measure(metric, samples, references, prompts, **given)

    monkeypatch.setattr(Metric, "__call__", noted)
    files = evaluated(tmp_path, settings)
    assert sorted(asked) == sorted((metric, name) for metric in ("psnr_db", "ssim") for name in truth for _ in (0, 100))
    written = {path: path.read_bytes() for path in files}
    choice = records.read_json(tmp_path / "choice.json")
    records.write_json(tmp_path / "choice.json", {**choice, "measured": {}})  # as it was written before
    asked.clear()
    evaluate_version(settings, tmp_path, tmp_path / "references")
    assert len(asked) == 2 * 2 * len(truth)
    assert {path: path.read_bytes() for path in files} == written
    known = {file: {"psnr_db": 1.0} for file in choice["measured"]}
    records.write_json(tmp_path / "choice.json", {**choice, "measured": known})
    evaluate_version(settings, tmp_path, tmp_path / "references")
    means = {row["metric"]: (row["mean"], row["test_mean"]) for row in records.read_csv(tmp_path / "metrics.csv")}
    assert means["psnr_db"] == ("1.0000", "100.0000") and means["ssim"] == ("1.0000", "1.0000")


def test_pictures_that_were_learnt_from_are_read_once_for_all_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large set neither lies in memory nor is looked at again for each checkpoint; the values are those of one."""
    truth = references_of("captain")
    base = {name: np.roll(pixels, 20, axis=0) for name, pixels in truth.items()}
    lay(tmp_path, truth, {0: base, 100: truth, 200: base}, tested=())
    learnt = [{"id": f"t{number}", "split": "train", "file": f"pictures/t{number}.png"} for number in range(3)]
    for row in learnt:
        records.write_bytes(tmp_path / "references" / row["file"], png_bytes(Image.fromarray(picture())))
    records.write_jsonl(tmp_path / "references/fit.jsonl", learnt)
    opened: list[str] = []
    monkeypatch.setattr(run, "read_rgb", lambda path: opened.append(path.name) or read_rgb(path))
    metric: Metric = choices.pick(choices.METRICS, "memorisation_ratio")
    names = sorted(truth)[:5]
    evaluator = Evaluator({metric.name: metric}, tmp_path, tmp_path / "references", names, None)
    assert not {"t0.png", "t1.png", "t2.png"} & {*opened}
    rows = evaluator.measure(drawn(tmp_path, VALIDATION))
    assert sorted(name for name in opened if name.startswith("t")) == ["t0.png", "t1.png", "t2.png"]
    training = [np.asarray(read_rgb(tmp_path / "references" / row["file"])) for row in learnt]
    for step, pictures in ((0, base), (100, truth)):
        values = metric(
            [pictures[name] for name in names], [truth[name] for name in names], [""] * 5,
            training=training, held_out=[truth[name] for name in names],
        )  # fmt: skip
        assert [row[metric.name] for row in rows if row["step"] == step] == values.tolist()


def test_a_persons_choice_is_tested_beside_the_rules(tmp_path: Path) -> None:
    truth = references_of("captain")
    base = {name: np.full_like(pixels, 128) for name, pixels in truth.items()}
    lay(tmp_path, truth, {0: base, 100: truth, 200: base}, tested=(0, 100, 200))
    settings = Evaluate(metrics=("psnr_db",), choose_by="psnr_db")
    evaluated(tmp_path, settings, chosen=200)
    best = records.read_json(tmp_path / "best.json")
    assert (best["best_step"], best["overruled"]["best_step"], best["test"]["figures"]["psnr_db"]["delta"]) == (
        200,
        100,
        0,
    )
    with pytest.raises(DataError, match="chosen is 150, but the checkpoints are 100, 200"):
        evaluated(tmp_path, settings, chosen=150)


def test_networks_measure_a_version(tmp_path: Path) -> None:
    """Through both stages: a network is loaded once, and a mean of CMMD is that of all pictures of a part."""
    truth = references_of("captain")
    base = {name: np.roll(pixels, 20, axis=0) for name, pixels in truth.items()}
    lay(tmp_path, truth, {0: base, 100: truth, 200: base}, seeds=(7, 8), tested=(0, 100))
    clip, dinov2 = save_small_clip(tmp_path / "clip"), save_small_dinov2(tmp_path / "dinov2")
    folders = {"clip_model": clip, "dinov2_model": dinov2, "cmmd_model": clip}
    networks = {name: Network(model=str(at), revision=None, identity="-", threads=1) for name, at in folders.items()}
    recipe = EvaluateRecipe.model_construct(wildcards={"version": "a"}, networks=networks)
    settings = Evaluate(metrics=("clip_t", "clip_i", "dinov2", "cmmd"), choose_by="cmmd")
    choice = choose_by_samples(settings, tmp_path, tmp_path / "references", sorted(truth), None, recipe)
    records.write_json(tmp_path / "choice.json", asdict(choice))
    evaluate_version(settings, tmp_path, tmp_path / "references", recipe)
    rows = {(row["metric"], row["step"]): row for row in records.read_csv(tmp_path / "metrics.csv")}
    assert choice.step == 100
    assert [rows[name, "100"]["mean"] for name in ("clip_i", "dinov2")] == ["1.0000", "1.0000"]
    assert float(rows["cmmd", "100"]["mean"]) == pytest.approx(0, abs=1e-6) and float(rows["cmmd", "0"]["mean"]) > 0.01
    names = sorted(truth)[5:]
    samples = [np.roll(base[name], seed, axis=0) for seed in (0, 1) for name in names]
    cmmd: Metric = choices.pick(choices.METRICS, "cmmd")
    assert cmmd.prepare is not None
    whole = cmmd(samples, [truth[name] for name in names] * 2, [""] * 10, **cmmd.prepare(recipe)(0, []))
    assert float(rows["cmmd", "0"]["test_mean"]) == pytest.approx(whole.mean(), rel=1e-4)


def test_held_out_pictures_of_both_parts_say_what_is_new(tmp_path: Path) -> None:
    """A ratio's yardstick is the same whichever part is measured: the memorised share does not depend on the split."""
    truth = references_of("captain")
    lay(tmp_path, truth, {0: truth, 100: truth})
    paths = sorted((ROOT / "data/embedded/captain/train").glob("*.png"))[:3]
    for number, path in enumerate(paths):
        picture = Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
        records.write_bytes(tmp_path / f"references/pictures/t{number}.png", png_bytes(picture))
    rows = [{"split": "train", "file": f"pictures/t{number}.png"} for number in range(len(paths))]
    records.write_jsonl(tmp_path / "references/fit.jsonl", rows)
    settings = Evaluate(metrics=("memorisation_ratio",), choose_by="memorisation_ratio")
    evaluated(tmp_path, settings)
    row = records.read_csv(tmp_path / "metrics.csv")[0]
    apart = [float(row[f"image{number}"]) for number in range(1, 11)]
    pixels = [truth[name] for name in sorted(truth)]
    training = [
        np.asarray(Image.open(tmp_path / row["file"].replace("pictures", "references/pictures"))) for row in rows
    ]
    metric = choices.pick(choices.METRICS, "memorisation_ratio")
    together = metric(pixels, pixels, [""] * 10, training=training, held_out=pixels)
    assert apart == pytest.approx(together.tolist(), abs=1e-4)
