"""The training set for kohya's trainer: every picture with its caption, whatever the words in it."""

import json
from pathlib import Path

import pytest
from small_set import captain, edited, make_set, picture_id

from sdlora import records
from sdlora.flow import freshness, plan
from sdlora.flow.freshness import write_made
from sdlora.stages.flip import kohya_set
from sdlora.stages.flip.flip import flip_dataset
from sdlora.stages.flip.recipe import FlipRecipe

TRIGGER = "captain / hat"
ONE, TWO, THREE = (picture_id(number) for number in range(3))
CAPTIONS = ["captain, left\nsecond line", 'captain; a "hat"', "captain, é 日本"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, two of them three times an epoch."""
    pictures = {"a.png": captain(1), "3_hat/b.png": captain(2), "3_hat/c.png": captain(3)}
    return make_set(tmp_path_factory.mktemp("set"), pictures, captions=CAPTIONS, encode=False, repeats="kohya")


def names_in(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def test_captions_lie_beside_the_pictures(folder: Path) -> None:
    files = flip_dataset(folder, True, True, "kohya", ["folders", TRIGGER])
    place = folder / "kohya"
    pictures = [f"1_captain _ hat/{ONE}{side}.png" for side in ("", ".flip")]
    pictures += [f"3_captain _ hat/{name}{side}.png" for name in (TWO, THREE) for side in ("", ".flip")]
    texts = [name.removesuffix(".png") + ".txt" for name in pictures]
    assert names_in(place) == sorted(pictures + texts)
    assert {path for path in files if "kohya" in path.parts} == {place / name for name in pictures + texts}
    for name in pictures:
        assert (place / name).read_bytes() == (folder / "train" / Path(name).name).read_bytes()
    # kohya's trainer takes the first line of a text for the caption
    assert (place / f"1_captain _ hat/{ONE}.txt").read_text("utf-8") == "captain, left second line\n"
    assert (place / f"1_captain _ hat/{ONE}.flip.txt").read_text("utf-8") == "captain, right second line\n"
    assert (place / f"3_captain _ hat/{THREE}.txt").read_text("utf-8") == "captain, é 日本\n"


def test_metadata_names_each_picture_and_nothing_is_left_over(folder: Path) -> None:
    flip_dataset(folder, True, True, "kohya", ["folders", TRIGGER])
    flip_dataset(folder, False, True, "kohya", ["metadata", TRIGGER])
    place = folder / "kohya"
    assert names_in(place) == sorted(
        [f"{name}/metadata.json" for name in ("1_captain _ hat", "3_captain _ hat")]
        + [f"1_captain _ hat/{ONE}.png", f"3_captain _ hat/{TWO}.png", f"3_captain _ hat/{THREE}.png"]
    )
    told = json.loads((place / "3_captain _ hat/metadata.json").read_text("utf-8"))
    assert told == {
        f"{TWO}.png": {"caption": 'captain; a "hat"', "image_size": [64, 64]},
        f"{THREE}.png": {"caption": "captain, é 日本", "image_size": [64, 64]},
    }
    flip_dataset(folder, False, True, "kohya")
    assert not place.exists()


@pytest.mark.parametrize(
    ("trigger", "name"),
    [
        ("captain", "3_captain"), ("pixel art avatar", "3_pixel art avatar"), ("../../etc/x", "3__.._etc_x"),
        ("a\\b:c*?<>|\"\n", "3_a_b_c_______"), ("...", "3__"), ("日本", "3_日本"), ("x" * 300, "3_" + "x" * 80),
    ],
)  # fmt: skip
def test_a_trigger_becomes_one_folder(trigger: str, name: str) -> None:
    found = kohya_set.folder_name(3, trigger)
    assert "/" not in found and "\\" not in found and found.startswith("3_")
    assert found == name


def test_the_option_makes_no_training_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The set for kohya is read by no stage: flip runs again, what it is trained on stays the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/embedded/small/train").mkdir(parents=True)
    without = edited(tmp_path)
    chosen = edited(tmp_path, ("defaults:\n", "defaults:\n  flip: {kohya: folders}\n"))
    jobs = [{job.made: job for job in plan.jobs(params)} for params in (without, chosen)]
    changed = {jobs[0][made].stage for made in jobs[0] if jobs[0][made].identity() != jobs[1][made].identity()}
    assert changed == {"flip"}
    recipe = FlipRecipe(
        wildcards={"dataset": "kohya", "fit": "pad-edge-64"},
        mirror=True,
        swap_words=True,
        trigger="",
        repeats={},
        kohya=None,
    )
    made = recipe.made
    outputs = [made.parent.parent / "train/metadata.jsonl", made.parent.parent / "kohya/3_a/1.txt"]
    for path in outputs:
        records.write_text(path, "x")
    found = []
    for count in (1, 2):
        write_made(recipe, outputs[:count])
        found.append(freshness.outputs_identity(made))
    assert found[0] == found[1]
    assert len(records.read_json(made)["outputs"]) == 2, "but a missing file is noticed"
