"""Heads and identities are told apart exactly in drawn pictures, where the answer is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tools.tiny_base import heads, identity, world
from tools.tiny_base.accessories import Accessory
from tools.tiny_base.characters import CHARACTERS, Character, padded, portrait, portraits, strangers
from tools.tiny_base.identity import Case
from tools.tiny_base.pictures import Pixels
from tools.tiny_base.world import Picture

from sdlora import records
from sdlora.errors import DataError
from sdlora.images.pictures import png_bytes

pytestmark = pytest.mark.slow

CAPTAIN = CHARACTERS["captain"]


def square(character: Character, picture: Picture) -> Image.Image:
    """A portrait drawn in a square, at 64 px."""
    return world.draw(padded(picture, character.aspect), 64)


def with_second_head(character: Character, one: Picture, other: Picture, scale: float, where: str) -> Image.Image:
    """A picture with another head of the same character pasted over it."""
    left, top, right, bottom = world.face_box(padded(other, character.aspect), 256)
    head = world.draw(padded(other, character.aspect), 256).crop((left - 8, max(0, top), right + 8, bottom))
    head = head.resize((round(head.width * scale / 4), round(head.height * scale / 4)), Image.Resampling.LANCZOS)
    oval = Image.new("L", head.size, 0)
    ImageDraw.Draw(oval).ellipse((0, -0.1 * head.height, head.width, 1.05 * head.height), fill=255)
    middle = 32 - head.width // 2
    places = {
        "below": (middle, 64 - head.height),
        "left": (-head.width // 6, 30),
        "right": (64 - head.width + head.width // 6, 26),
    }
    drawn = square(character, one)
    drawn.paste(head, places[where], oval)
    return drawn


@pytest.mark.parametrize("name", CHARACTERS)
def test_two_heads_are_two_and_one_is_one(name: str) -> None:
    character = CHARACTERS[name]
    drawn = portraits(character, 30, 0)
    for number in range(3):
        one, other, third = drawn[number], drawn[number + 9], drawn[number + 17]
        head = heads.head_of(padded(one, character.aspect), 64)
        assert heads.count(square(character, one), head) == 1
        assert heads.count(square(character, other), head) == 1
        for scale, where in ((1.0, "below"), (0.75, "left"), (0.8, "right"), (0.7, "below")):
            assert heads.count(with_second_head(character, one, third, scale, where), head) == 2, where


def test_a_head_is_found_where_it_is_and_in_no_empty_picture() -> None:
    one = portraits(CAPTAIN, 1, 0)[0]
    head = heads.head_of(padded(one, CAPTAIN.aspect), 64)
    x, y, value = heads.places(square(CAPTAIN, one), head)[0]
    left, top, right, bottom = world.face_box(padded(one, CAPTAIN.aspect), 64)
    assert abs(x - (left + right) / 2) <= 1 and abs(y - (max(0, top) + bottom) / 2) <= 1 and value > 0.95
    assert heads.count(Image.new("RGB", (64, 64), "white"), head) == 0
    static = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert heads.count(static, head) == 0
    headless = replace(one, left=5.0)
    assert heads.count(square(CAPTAIN, headless), head) == 0


def cases_of(character: Character, count: int, size_px: int = 64) -> list[Case]:
    """The truth as a sample: what a perfect LoRA would draw."""
    return [Case(portrait(one, character.aspect, size_px), one) for one in portraits(character, count, 0)]


@pytest.mark.parametrize("name", CHARACTERS)
def test_the_truth_passes_every_question(name: str) -> None:
    character = CHARACTERS[name]
    found = identity.figures(cases_of(character, 2), character)
    assert found == {
        "samples": 2, "own_by_pixels": 1.0, "own_by_features": 1.0, "mark_present": 1.0,
        "hue_within_15_degrees": 1.0, "mark_on_head": 1.0, "hair_on_head": 1.0, "one_head": 1.0, "two_heads": 0.0,
    }  # fmt: skip


def drawn_as(case: Case, **changes: object) -> Case:
    """A sample that differs from its truth."""
    return Case(portrait(replace(case.picture, **changes), CAPTAIN.aspect, len(case.drawn)), case.picture)


def test_strangers_pass_none() -> None:
    case = cases_of(CAPTAIN, 1)[0]
    others = [other for other in strangers(CAPTAIN, case.picture, 12) if not other.worn]
    for other in others:
        stranger = Case(portrait(other, CAPTAIN.aspect, 64), case.picture)
        assert not identity.has_mark(stranger, CAPTAIN), "dark skin is no patch"
    assert len(others) > 4
    assert identity.own_is_nearest(stranger, CAPTAIN) == {"pixels": False, "features": False}


def test_the_patch_is_seen_where_the_truth_has_it() -> None:
    for case in cases_of(CAPTAIN, 4):
        assert identity.has_mark(case, CAPTAIN)
        assert identity.has_mark(Case(np.roll(case.drawn, (1, -2), (0, 1)), case.picture), CAPTAIN)
        assert not identity.has_mark(drawn_as(case, over=""), CAPTAIN)
        assert not identity.has_mark(Case(case.drawn[:, ::-1], case.picture), CAPTAIN), "over the other eye"
        dark = {**case.picture.options, "skinColor": ["#5c3829"]}
        assert not identity.has_mark(drawn_as(case, over="", options=dark), CAPTAIN)
        glasses = (Accessory("round glasses", "#151515"),)
        assert not identity.has_mark(drawn_as(case, over="", worn=glasses), CAPTAIN)


@pytest.mark.parametrize(
    ("colour", "right"), [("#12a5a5", True), ("#1f8f8a", True), ("#3567d6", False), ("#8a8f98", False)]
)
def test_hair_of_another_hue_is_another(colour: str, right: bool) -> None:
    case = cases_of(CAPTAIN, 1)[0]
    dyed = drawn_as(case, options={**case.picture.options, "hairColor": [colour]})
    assert (identity.hue_error(dyed, CAPTAIN) <= identity.HUE_DEGREES) is right


def shown(drawn: Pixels | Image.Image, picture: Picture) -> tuple[bool, bool]:
    """Whether the patch and the hair are on the head that a sample of a picture's caption shows."""
    found = identity.head_shows(Case(np.asarray(drawn), picture), CAPTAIN)
    return found["mark_on_head"], found["hair_on_head"]


def dyed(picture: Picture, colour: str) -> Picture:
    return replace(picture, options={**picture.options, "hairColor": [colour]})


@pytest.mark.parametrize("size_px", [64, 96])
def test_patch_and_hair_are_seen_on_the_head_wherever_it_is(size_px: int) -> None:
    for picture in portraits(CAPTAIN, 3, 0):
        drawn = portrait(picture, CAPTAIN.aspect, size_px)
        for down, across in ((6, -5), (9, 8), (0, 0)):
            moved = np.roll(drawn, (down, across), (0, 1))
            assert shown(moved, picture) == (True, True), (down, across)
        assert not identity.has_mark(Case(np.roll(drawn, (9, 8), (0, 1)), picture), CAPTAIN), "it asks at one place"
        small = replace(picture, size=0.6, left=0.38, top=0.3)
        assert shown(world.draw(small, size_px), picture) == (True, True)
        assert shown(world.draw(replace(small, size=0.44), size_px), picture) == (True, True)
        assert shown(world.draw(CAPTAIN.without_mark(small), size_px), picture) == (False, True)
        assert shown(world.draw(dyed(small, "#b11f1f"), size_px), picture) == (True, False)


def test_what_is_no_patch_is_none_wherever_the_head_is() -> None:
    for picture in portraits(CAPTAIN, 4, 0):
        assert shown(portrait(replace(picture, over=""), CAPTAIN.aspect, 64), picture) == (False, True)
        assert not shown(portrait(picture, CAPTAIN.aspect, 64)[:, ::-1], picture)[0], "over the other eye"
        for kind in ("sunglasses", "round glasses"):
            other = replace(picture, over="", worn=(Accessory(kind, "#151515"),))
            assert shown(portrait(other, CAPTAIN.aspect, 64), picture) == (False, True), kind
        for skin in ("#5c3829", "#7a4a2a"):
            other = replace(picture, over="", options={**picture.options, "skinColor": [skin]})
            assert shown(portrait(other, CAPTAIN.aspect, 64), picture) == (False, True), skin
        shadow = replace(other, over=CAPTAIN.over.replace("#151515", "#4a2f1c"))
        assert not shown(portrait(shadow, CAPTAIN.aspect, 64), picture)[0], "dark for a face of that skin"
        for colour in ("#3567d6", "#8a8f98"):
            assert shown(portrait(dyed(picture, colour), CAPTAIN.aspect, 64), picture) == (True, False), colour


def test_strangers_have_no_patch() -> None:
    picture = portraits(CAPTAIN, 1, 0)[0]
    for stranger in strangers(CAPTAIN, picture, 12):
        assert not shown(portrait(stranger, CAPTAIN.aspect, 64), picture)[0], stranger.caption


def test_without_a_head_nothing_is_on_it() -> None:
    picture = portraits(CAPTAIN, 1, 0)[0]
    static = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    body = portrait(replace(picture, top=0.75), CAPTAIN.aspect, 64)
    for drawn in (static, body, np.full((64, 64, 3), 20, np.uint8)):
        assert identity.on_the_head(Case(drawn, picture), CAPTAIN) is None
        assert shown(drawn, picture) == (False, False)


def test_samples_are_read_with_their_truths(tmp_path: Path) -> None:
    wanted = identity.references(CAPTAIN)
    manifest = tmp_path / "manifest.jsonl"
    records.write_jsonl(manifest, [{"id": f"i{n}", "name": name} for n, name in enumerate(wanted)])
    rows = []
    for n, picture in enumerate(wanted.values()):
        file = f"step-000900/i{n}-seed42.png"
        drawn = Image.fromarray(portrait(picture, CAPTAIN.aspect, 96))
        records.write_bytes(tmp_path / "v8/samples" / file, png_bytes(drawn))
        rows.append({"step": 900, "reference": f"i{n}", "seed": 42, "file": file})
    records.write_jsonl(tmp_path / "v8/samples/index.jsonl", rows)
    cases = identity.read_cases(CAPTAIN, manifest, tmp_path / "v8", 900)
    assert [case.picture for case in cases] == list(wanted.values())
    assert identity.own_is_nearest(cases[3], CAPTAIN) == {"pixels": True, "features": True}
    with pytest.raises(DataError, match="no samples of step 0"):
        identity.read_cases(CAPTAIN, manifest, tmp_path / "v8", 0)
    records.write_jsonl(manifest, [{"id": f"i{n}", "name": "train/001.png"} for n in range(10)])
    with pytest.raises(DataError, match="i0 is not a reference of captain"):
        identity.read_cases(CAPTAIN, manifest, tmp_path / "v8", 900)
