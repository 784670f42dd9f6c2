"""The drawn world: its captions say what is drawn, small faces have their share, characters are held out of it."""

import json
import random
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tools.tiny_base import accessories, datasets, diffusion, palette, pictures, styles, world
from tools.tiny_base.characters import CHARACTERS, Character, portraits, strangers
from tools.tiny_base.world import Picture

from sdlora import records


@cache
def some() -> list[Picture]:
    """The first pictures of the world; some seconds' work, which only a process that asks pays."""
    return [world.sample(index, 0) for index in range(600)]


def hair_of(picture: Picture) -> str:
    """The name of a picture's colour of hair."""
    return palette.colour_name(picture.options["hairColor"][0])


def test_the_world_is_a_function_of_its_number() -> None:
    assert [world.sample(index, 0) for index in range(20)] == some()[:20]
    assert [world.sample(index, 1) for index in range(20)] != some()[:20]
    again = []
    for _ in range(2):
        world._avatar.cache_clear()
        again.append(np.asarray(world.draw(some()[7], 64)))
    assert np.array_equal(*again)


def test_hair_has_every_colour_also_the_captains() -> None:
    found = {hair_of(picture) for picture in some() if picture.style == "toon-head"}
    assert found >= set(palette.HAIR) and "teal" in found


def test_no_picture_of_the_world_shows_a_held_out_character() -> None:
    for name, character in CHARACTERS.items():
        for picture in portraits(character, 5, 0):
            assert world.is_identity(picture), name
            assert not any(world.is_identity(one) for one in strangers(character, picture, 5))
    assert not any(thing.kind == "straw hat" for picture in some() for thing in picture.worn)
    assert styles.HELD_OUT_STYLE not in {picture.style for picture in some()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 drawn pictures."""
    folder = tmp_path_factory.mktemp("whole")
    pictures.make(folder, "p", 300, 0, 8, workers=1)
    return folder


@pytest.mark.workflow  # drawn in processes of their own
def test_pictures_leave_out_what_is_held_out(whole: Path) -> None:
    made = pictures.load(whole, "p")
    held_out = {picture.caption for picture in pictures.kept_back(0, 15)}
    assert len(held_out) == 15 and not held_out & set(made.captions)
    teal = [text for text in made.captions if text.startswith("toon head") and "teal undercut hair" in text]
    assert made.pixels.shape == (300, 8, 8, 3) and not teal


def test_blip_sees_what_the_base_does_not_and_no_picture_of_a_dataset() -> None:
    seen = [one for one in (pictures.captioned(index, 2) for index in range(240)) if one]
    style = [one for one in seen if one.style == styles.HELD_OUT_STYLE]
    assert 0.4 < len(style) / len(seen) < 0.6 and not any("pixel" in one.caption for one in style)
    assert sum(map(world.is_identity, seen)) > 60
    assert any(len(one.worn) == 2 for one in seen if one.style == "personas")
    assert not any(thing.kind == "straw hat" for one in seen for thing in one.worn)
    assert not any(one.over or world.is_held_out(one) for one in seen if one not in style)
    dataset = [one.options for one in datasets.pixel_avatars(120, 0)]
    assert not [one for one in style if one.options in dataset]
    assert pictures.captioned(7, 2) == pictures.captioned(7, 2) != pictures.captioned(7, 3)


def test_small_figures_and_close_ups_have_their_share() -> None:
    share = {name: count / len(some()) for name, count in Counter(picture.framing for picture in some()).items()}
    assert sum(part for name, part in share.items() if name.startswith("small")) == pytest.approx(0.4, abs=0.05)
    assert share["close-up"] == pytest.approx(0.2, abs=0.04)
    assert sum(framing.share for framing in world.FRAMINGS.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("character", CHARACTERS.values(), ids=CHARACTERS)
def test_characters_wear_the_colours_of_their_style(character: Character) -> None:
    """In another style's, tiny-blip takes the gardener for a figure of that one."""
    worn = {picture.options[character.clothes][0] for picture in portraits(character, 25, 0)}
    assert worn <= set(styles.definition(character.style)["colors"][character.clothes.removesuffix("Color")]["values"])
    assert len(worn) >= 6


@pytest.mark.parametrize("kind", accessories.SHAPES)
def test_an_accessory_changes_the_picture_and_is_named(kind: str) -> None:
    for style in accessories.FACES:
        picture = next(one for one in some() if one.style == style and not one.worn)
        worn = replace(picture, worn=(accessories.Accessory(kind, "#d62b2b"),))
        changed = np.asarray(world.draw(worn, 64)) != np.asarray(world.draw(picture, 64))
        assert changed.any(axis=-1).sum() >= 4
        assert f"red {kind}" in worn.caption and f"red {kind}" not in worn.say({kind})


def test_the_unet_learns_what_wears_nothing_and_half_of_the_critters() -> None:
    captions = [picture.caption for picture in some()]
    learnt = diffusion.Examples(torch.arange(len(captions)), captions).learnt()
    assert [captions[number] for number in learnt.latents.tolist()] == learnt.captions
    for picture in some():
        assert accessories.is_bare(picture.caption) == (not picture.worn)
    critters = sum(text.startswith("critter") for text in captions)
    assert sum(text.startswith("critter") for text in learnt.captions) == (critters + 1) // 2


def test_varied_colours_keep_their_name() -> None:
    rng = random.Random(0)
    for name in palette.COLOURS:
        found = {palette.varied(name, rng) for _ in range(30)}
        assert {palette.colour_name(colour) for colour in found} == {name}
        assert len(found) >= 5, name


def test_a_figure_stands_on_the_lower_edge() -> None:
    for picture in some()[:60]:
        drawn, background = np.asarray(world.draw(picture, 64)), palette.rgb(palette.COLOURS[picture.background])
        assert (np.abs(drawn[-1] - background).max(axis=-1) > 8).any(), picture.caption


@pytest.mark.workflow
def test_a_killed_drawing_goes_on_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    pixels = (whole / "p.rgb").read_bytes()
    index = records.read_json(whole / "p.json")
    torn = tmp_path / "torn"
    torn.mkdir()
    # killed in the second batch: captions of 100 pictures and half a line, pixels of 120 and a half
    numbers = [n for n in range(400) if not (world.is_held_out(some()[n]) or world.is_identity(some()[n]))]
    lines = [json.dumps([number, some()[number].caption]) + "\n" for number in numbers[:100]]
    (torn / "p.captions.part").write_text("".join(lines) + '[107, "toon he')
    (torn / "p.rgb").write_bytes(pixels[: 8 * 8 * 3 * 120 + 77])
    pictures.make(torn, "p", 300, 0, 8, workers=1)
    assert (torn / "p.rgb").read_bytes() == pixels
    assert records.read_json(torn / "p.json") == index


def painted(picture: Picture, aspect: float, option: str) -> NDArray[np.bool_]:
    """Pixels (256, W) whose colour is that of an option."""
    drawn = [
        np.asarray(world.draw(replace(picture, options={**picture.options, option: [colour]}), 256, aspect), np.int64)
        for colour in ("#f7f7f7", "#151515")
    ]
    return np.asarray(np.abs(drawn[0] - drawn[1]).sum(axis=-1) > 200)


@pytest.mark.parametrize("name", CHARACTERS)
def test_padding_leaves_a_face_of_thirty_pixels_that_lies_high(name: str) -> None:
    character = CHARACTERS[name]
    for picture in portraits(character, 8, 0):
        bottom = world.face_box(picture, 256)[3]
        columns = painted(picture, character.aspect, "skinColor")[:bottom].any(axis=0).nonzero()[0]
        assert (columns.max() - columns.min()) / 4 >= 30, "from ear to ear, at 64 px"
        assert bottom < 0.65 * 256


def test_a_crop_of_the_centre_loses_the_captains_hair() -> None:
    captain = CHARACTERS["captain"]
    for picture in portraits(captain, 8, 0):
        hair = painted(picture, captain.aspect, "hairColor")
        cut = (256 - hair.shape[1]) // 2
        assert hair[:cut].sum() > 0.55 * hair.sum(), "most of it"
        assert hair[0].sum() < 0.5 * hair[cut // 2].sum(), "but the picture itself has it"


def test_captions_of_a_character_say_what_varies_and_not_who_it_is() -> None:
    for character in CHARACTERS.values():
        pictures_of = portraits(character, 35, 0)
        captions = [character.caption(picture) for picture in pictures_of]
        assert len(set(captions)) == 35
        for word in ("hair", "skin", "hat", "glasses", "patch"):
            assert not any(word in caption for caption in captions)
        assert len({picture.background for picture in pictures_of}) > 6
        others = strangers(character, pictures_of[0], 19)
        assert {character.caption(replace(one, worn=())) for one in others} == {captions[0]}
        assert len({str(one.options) + str(one.worn) for one in others}) == 19


def test_the_datasets_are_written_with_references(tmp_path: Path) -> None:
    datasets.write_character(tmp_path / "captain", CHARACTERS["captain"])
    assert len(list((tmp_path / "captain/train").glob("*.png"))) == 25
    held_out = sorted(path.name for path in (tmp_path / "captain/references").iterdir())
    assert held_out == [f"{number:03d}.png" for number in range(1, 11)]
    with Image.open(tmp_path / "captain/train/001.png") as picture:
        assert picture.size == (171, 256)
