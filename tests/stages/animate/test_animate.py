"""A drawn picture that moves: the real pipeline with small random weights, and what the DAG says of it."""

import io
from pathlib import Path

import pytest
from helpers import Project
from PIL import Image

from sdlora import records
from sdlora.config.animate import Animate
from sdlora.errors import DataError, MissingError
from sdlora.stages.animate.animate import as_gif, frames_of, load, picture_of

SMALL = {"dtype": "fp32", "width_px": 128, "height_px": 64, "frames": 3, "inference_steps": 2}


@pytest.fixture(scope="module")
def small_svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from shapes import save_small_svd  # imports diffusers: 5 s

    folder = tmp_path_factory.mktemp("svd")
    save_small_svd(folder)
    return folder


def film(settings: Animate, picture: Image.Image) -> bytes:
    return as_gif(frames_of(load(settings), picture, settings), settings.fps)


@pytest.mark.slow
def test_a_film_is_a_function_of_picture_and_settings(small_svd: Path) -> None:
    picture = Image.new("RGB", (48, 64), "teal")
    settings = Animate(model=str(small_svd), **SMALL)
    once = film(settings, picture)
    with Image.open(io.BytesIO(once)) as gif:
        assert (gif.format, gif.n_frames, gif.info["duration"], gif.info["loop"]) == ("GIF", 3, 140, 0)
        assert gif.size == (48, 64), "the padding is cut off again"
    assert film(settings, picture) == once
    for change in ({"seed": 7}, {"motion_bucket_id": 3}, {"noise_aug_strength": 0.5}, {"fps": 12}, {"frames": 4},
                   {"max_guidance_scale": 9.0}, {"inference_steps": 3}, {"width_px": 192}):  # fmt: skip
        assert film(settings.model_copy(update=change), picture) != once, change


def test_fp16_wants_a_gpu() -> None:
    with pytest.raises(MissingError, match=r"animate\.dtype is fp16, which needs a GPU"):
        load(Animate())


def test_which_picture_moves(tmp_path: Path) -> None:
    records.write_json(tmp_path / "choice.json", {"by_rule": 100, "chosen": 200})
    rows = [
        {"step": step, "seed": seed, "reference": name, "file": f"{step}-{name}-{seed}.png"}
        for step in (0, 100, 200) for name in "ab" for seed in (42, 43)
    ]  # fmt: skip
    records.write_jsonl(tmp_path / "samples/index.jsonl", [row for row in rows if row["seed"] == 42])
    records.write_jsonl(tmp_path / "test_samples/index.jsonl", [])
    assert picture_of(tmp_path, 2) == tmp_path / "samples/200-b-42.png"
    records.write_jsonl(tmp_path / "test_samples/index.jsonl", rows)
    assert picture_of(tmp_path, 1) == tmp_path / "test_samples/200-a-42.png"
    with pytest.raises(DataError, match=r"animate\.reference is 3, but step 200 of .* drew 2 references"):
        picture_of(tmp_path, 3)


def test_it_is_made_when_it_is_asked_for(built: Project, small_svd: Path) -> None:
    wanted = "results/a/animation.gif"
    assert "version a has no section animate" in built.snakemake(wanted, check=False)
    said = ", ".join(f"{key}: {value}" for key, value in SMALL.items())
    built.edit("params.yaml", "train: {rank: 2}", f"train: {{rank: 2}}\n    animate: {{model: {small_svd}, {said}}}")
    assert not built.plan("results/a/metrics.csv")
    assert built.plan(wanted) == {"animate"}
    built.snakemake(wanted)
    with Image.open(built.folder / wanted) as gif:
        assert (gif.n_frames, gif.size) == (3, (64, 64))
    assert not built.plan(wanted)
    built.edit("src/sdlora/stages/animate/animate.py", "round(100 / fps)", "round(100.0 / fps)")
    assert built.plan(wanted) == {"animate"}
    built.command("sdlora", "accept", "a", "--yes")
    assert not built.plan(wanted)
    built.edit("params.yaml", "frames: 3", "frames: 2")
    assert built.plan(wanted) == {"animate"}
