"""Aspect buckets: which there are, that nothing is cropped or lost, and what fitting again costs."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image, ImageOps
from small_set import edited, make_set, noise, picture_id, write_manifest

from sdlora import records
from sdlora.config.params import Fit
from sdlora.flow import plan
from sdlora.stages.fit.fit import (
    LANCZOS,
    bucket_step_px,
    buckets,
    center_crop,
    fit_dataset,
    fit_picture,
    nearest_bucket,
)
from sdlora.stages.fit.recipe import FitRecipe


@pytest.mark.parametrize(("size_px", "step_px"), [(512, 64), (1024, 64), (64, 8), (96, 16)])
@pytest.mark.parametrize("max_aspect", [1.0, 1.5, 2.0, 4.0])
def test_buckets_have_the_bases_area(size_px: int, step_px: int, max_aspect: float) -> None:
    found = buckets(size_px, step_px, max_aspect)
    assert (size_px, size_px) in found and len(found) == len(set(found))
    for width, height in found:
        assert width % step_px == height % step_px == 0
        assert width * height <= size_px**2
        assert max(width, height) <= max_aspect * min(width, height)
        # no bucket could be larger by one step of its shorter side's partner
        assert max(width * (height + step_px), (width + step_px) * height) > size_px**2
        assert (height, width) in found
    assert max_aspect > 1 or found == [(size_px, size_px)]


def test_buckets_of_sd_15() -> None:
    assert buckets(512, 64, 2.0) == [
        (384, 640), (448, 576), (512, 512), (576, 448), (640, 384),
    ]  # fmt: skip
    assert (768, 320) in buckets(512, 64, 2.5) and (768, 320) not in buckets(512, 64, 2.0)


def test_the_step_follows_the_base() -> None:
    steps = {side: bucket_step_px(Fit(method="bucket", size_px=side)) for side in (64, 256, 512, 1024)}
    assert steps == {64: 8, 256: 32, 512: 64, 1024: 64}
    assert bucket_step_px(Fit(method="bucket", size_px=512, bucket_step_px=32)) == 32


def test_nearest_is_by_aspect_ratio() -> None:
    every = buckets(512, 64, 2.0)
    assert nearest_bucket((300, 300), every) == (512, 512)
    assert nearest_bucket((1600, 1000), every) == (640, 384)
    assert nearest_bucket((1000, 1600), every) == (384, 640)
    assert nearest_bucket((9000, 100), every) == (640, 384), "too wide for any: the widest takes it"
    # equally far from both: the larger area, whatever the order
    assert nearest_bucket((10, 10), [(20, 10), (20, 40)]) == nearest_bucket((10, 10), [(20, 40), (20, 10)]) == (20, 40)


@pytest.mark.parametrize("size", [(112, 64), (64, 112), (64, 64), (61, 67), (500, 20), (20, 500), (7, 5)])
def test_a_bucket_never_crops(size: tuple[int, int]) -> None:
    picture = noise(*size)
    fitted = fit_picture(picture, Fit(method="bucket", size_px=64))
    left, top, width, height = fitted.box
    inner = fitted.picture.crop((left, top, left + width, top + height))
    whole = ImageOps.contain(picture, fitted.picture.size, LANCZOS)
    assert np.array_equal(np.asarray(inner), np.asarray(whole))
    assert fitted.picture.size in buckets(64, 8, 2.0)
    assert width == fitted.picture.width or height == fitted.picture.height


@pytest.mark.parametrize("size", [(3000, 20), (20, 3000)])
@pytest.mark.parametrize("fill", ["edge", "blur", "#102030"])
def test_of_a_very_long_picture_a_line_is_left(size: tuple[int, int], fill: str) -> None:
    for method in ("pad", "bucket"):
        fitted = fit_picture(noise(*size), Fit(method=method, size_px=64, fill=fill))
        assert fitted.box[2:] == ((fitted.picture.width, 1) if size[0] > size[1] else (1, fitted.picture.height))
        assert fit_picture(Image.new("L", size, 255), Fit(method=method, size_px=64, fill=fill)).box == fitted.box


def test_a_bucket_pads_less_than_the_square() -> None:
    picture = noise(112, 64)
    areas = {}
    for method in ("pad", "bucket"):
        fitted = fit_picture(picture, Fit(method=method, size_px=64))
        areas[method] = fitted.box[2] * fitted.box[3] / (fitted.picture.width * fitted.picture.height)
    assert areas["pad"] < 0.6 < 0.9 < areas["bucket"]


def test_options_change_the_bucket_or_say_why_not() -> None:
    picture = noise(200, 64)
    sizes = {
        name: fit_picture(picture, Fit(method="bucket", size_px=64, **options)).picture.size
        for name, options in {"plain": {}, "step": {"bucket_step_px": 32}, "aspect": {"bucket_max_aspect": 4}}.items()
    }
    assert len(set(sizes.values())) == 3
    for option in ({"bucket_step_px": 8}, {"bucket_max_aspect": 2.0}):
        with pytest.raises(ValueError, match="no effect with method: pad; did you mean method: bucket"):
            Fit(**option)
    with pytest.raises(ValueError, match="more than size_px"):
        Fit(method="bucket", size_px=64, bucket_step_px=128)


def test_the_crops_corner_is_recorded() -> None:
    picture = noise(128, 64)
    fitted = fit_picture(picture, Fit(method="center_crop", size_px=64))
    assert fitted.corner == (32, 0)
    assert np.array_equal(np.asarray(fitted.picture), np.asarray(picture.crop((32, 0, 96, 64))))
    assert fit_picture(noise(32, 128), Fit(method="center_crop", size_px=64)).corner == (0, 96)
    assert np.array_equal(np.asarray(center_crop(picture, 64, "edge")[0]), np.asarray(fitted.picture))


def test_every_picture_is_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [(112, 64), (64, 112), (64, 64), (66, 64), (500, 20)]
    folder = make_set(
        tmp_path, {f"{n}.png": noise(*s) for n, s in enumerate(sizes)}, Fit(method="bucket", size_px=64), encode=False
    )
    rows = records.read_jsonl(folder / "fit.jsonl")
    assert [row["original"] for row in rows] == [list(size) for size in sizes]
    for row in rows:
        with Image.open(folder / row["file"]) as picture:
            assert list(picture.size) == row["bucket"]
    assert sum(int(part.split()[-4]) for part in capsys.readouterr().out.split("; ")[1].split(",")) == len(sizes)
    trained = records.read_jsonl(folder / "train" / "metadata.jsonl")
    assert {row["id"] for row in trained} == {row["id"] for row in rows}


def test_only_what_changed_is_fitted_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = {f"{n}.png": noise(80, 40, n) for n in range(3)}

    def fitted(**changes: object) -> str:
        (tmp_path / "out/fit.jsonl").unlink(missing_ok=True)  # as Snakemake does before it runs a job
        shutil.rmtree(tmp_path / "out/pictures", ignore_errors=True)
        fit_dataset(Fit(size_px=64, **changes), tmp_path, tmp_path / "out")
        return capsys.readouterr().out.split(";")[0]

    write_manifest(tmp_path, pictures)
    assert fitted() == "fit: 3 new, 0 kept"
    first, table = ((tmp_path / "out" / name).read_bytes() for name in (f"pictures/{picture_id(0)}.png", "fit.jsonl"))
    assert fitted() == "fit: 0 new, 3 kept"
    assert (tmp_path / "out/fit.jsonl").read_bytes() == table, "the same bytes, whatever was kept"
    write_manifest(tmp_path, {**pictures, "3.png": noise(40, 80, 3)})
    assert fitted() == "fit: 1 new, 3 kept"
    (tmp_path / f"out/pictures/{picture_id(0)}.png").write_bytes(b"damaged")  # and so the same file in the store
    assert fitted() == "fit: 1 new, 3 kept"
    assert (tmp_path / f"out/pictures/{picture_id(0)}.png").read_bytes() == first
    assert fitted(fill="blur") == "fit: 4 new, 0 kept"
    fit_dataset(Fit(size_px=64, fill="blur"), tmp_path, tmp_path / "out", identity="other code")
    assert capsys.readouterr().out.startswith("fit: 4 new")


def test_each_list_of_buckets_has_its_folder_and_references_stay_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"a": "bucket_max_aspect: 1.5", "b": "bucket_step_px: 16, fill: blur"}
    changes = [(f"  {name}:\n", f"  {name}:\n    fit: {{method: bucket, {text}}}\n") for name, text in options.items()]
    params = edited(tmp_path, *changes)
    fits = {job.name: job.fit for job in plan.jobs(params) if isinstance(job, FitRecipe)}
    assert set(fits) == {
        "small/bucket-edge-aspect1p5-64", "small/pad-edge-64", "small/bucket-blur-step16-64", "small/pad-blur-64",
    }  # fmt: skip
    assert {name: fit.method for name, fit in fits.items() if "pad" in name} == {
        "small/pad-edge-64": "pad", "small/pad-blur-64": "pad",
    }  # fmt: skip
    # the names that Snakemake's rules take
    pattern = re.search(r'fit=r"(.*)",', (ROOT / "Snakefile").read_text("utf-8"))
    assert pattern and all(re.fullmatch(pattern.group(1), name.split("/")[1]) for name in fits)
