"""Opening and fitting pictures of every kind."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sdlora import records
from sdlora.config.params import Fit
from sdlora.errors import DataError
from sdlora.images import masks
from sdlora.images.pictures import open_picture, read_rgb, to_rgb
from sdlora.stages.fit import fit


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = noise(12, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(upright, exif=exif.tobytes())
    opened = to_rgb(open_picture(stored, "x"))
    tagged = upright.copy()
    tagged.getexif()[0x0112] = orientation
    assert np.array_equal(np.asarray(opened), np.asarray(ImageOps.exif_transpose(tagged)))


def test_16_bit_is_scaled_not_clipped() -> None:
    values = np.array([[0, 20000, 40000, 65535]], np.uint16)
    opened = to_rgb(open_picture(encoded(Image.fromarray(values)), "x"))
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 78, 156, 255]


def test_alpha_lies_on_the_matte() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(clear, "#00ff00").getpixel((0, 0)) == (0, 255, 0)


def test_palette_with_transparency() -> None:
    palette = noise(8, 8).quantize(4)
    stored = encoded(palette, transparency=0)
    opened = to_rgb(open_picture(stored, "x"))
    assert opened.mode == "RGB"
    hidden = np.asarray(palette) == 0
    assert (np.asarray(opened)[hidden] == 255).all()


def test_cmyk_and_animation() -> None:
    assert to_rgb(open_picture(encoded(noise(8, 8).convert("CMYK"), "JPEG"), "x")).mode == "RGB"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert to_rgb(open_picture(animated, "x")).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html></html>", encoded(noise(64, 64))[:2000], encoded(noise(64, 64), "JPEG")[:1500]],
    ids=["empty", "html", "half png", "half jpeg"],
)
def test_damaged_pictures_are_errors(content: bytes) -> None:
    with pytest.raises(DataError, match=r"picture\.png"):
        open_picture(content, "picture.png")


@pytest.mark.parametrize("read", [read_rgb, masks.read_fitted])
def test_half_a_png_of_a_stage_is_an_error(read: Callable[[Path], Image.Image], tmp_path: Path) -> None:
    whole = encoded(noise(64, 64))
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.png: not what a stage wrote"):
        read(tmp_path / "a.png")


def test_too_many_pixels() -> None:
    with pytest.raises(DataError, match="pixels"):
        open_picture(encoded(Image.new("1", (20000, 20000))), "bomb.png")


@pytest.mark.parametrize("size", [(100, 40), (40, 100), (64, 64), (33, 7)])
@pytest.mark.parametrize("fill", ["edge", "blur", "#102030"])
def test_pad_keeps_the_whole_picture(size: tuple[int, int], fill: str) -> None:
    picture = noise(*size)
    square, (left, top, width, height) = fit.pad(picture, 64, fill)
    assert square.size == (64, 64)
    assert max(width, height) == 64
    inner = square.crop((left, top, left + width, top + height))
    assert np.array_equal(np.asarray(inner), np.asarray(ImageOps.contain(picture, (64, 64), Image.Resampling.LANCZOS)))


def test_fills_differ_and_do_what_they_say() -> None:
    picture = Image.new("RGB", (64, 32), "red")
    picture.paste("blue", (0, 0, 32, 32))
    colour = np.asarray(fit.pad(picture, 64, "#00ff00")[0])
    edge = np.asarray(fit.pad(picture, 64, "edge")[0])
    blur = np.asarray(fit.pad(picture, 64, "blur")[0])
    assert (colour[0] == (0, 255, 0)).all()
    assert np.array_equal(edge[0], edge[16])
    assert not np.array_equal(blur[0], edge[0])


def test_center_crop_loses_the_sides() -> None:
    picture = Image.new("RGB", (100, 50), "white")
    picture.paste("red", (0, 0, 20, 50))
    square, box = fit.center_crop(picture, 50, "edge")
    assert box == (0, 0, 50, 50)
    assert (np.asarray(square) == 255).all()


def test_fit_dataset_records_where_the_picture_lies(tmp_path: Path) -> None:
    content = encoded(noise(80, 40))
    file = f"{'a' * 64}.png"
    records.write_bytes(tmp_path / "raw" / file, content)
    row = {"id": "a" * 16, "name": "a.png", "file": file, "sha256": "0", "split": "train", "caption": None}
    records.write_jsonl(tmp_path / "manifest.jsonl", [row])
    files = fit.fit_dataset(Fit(size_px=64), tmp_path, tmp_path / "out")
    assert records.read_jsonl(tmp_path / "out" / "fit.jsonl")[0]["box"] == [0, 16, 64, 32]
    assert (tmp_path / "out/pictures" / f"{'a' * 16}.png") in files
