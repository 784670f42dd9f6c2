"""Captions: the real tiny BLIP, the trigger, a user's overrides."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from PIL import Image
from pydantic import ValidationError
from small_set import edited, make_set, noise
from transformers import BatchFeature

from sdlora import records
from sdlora.config.caption import Caption
from sdlora.errors import DataError, MissingError, ResourceError
from sdlora.flow import plan
from sdlora.images.pictures import png_bytes, read_rgb
from sdlora.stages.caption.blip import Blip, tidy
from sdlora.stages.caption.caption import (
    Captioner,
    caption_dataset,
    captioner_of,
    leave_out,
    prune,
    read_overrides,
    warnings,
    with_trigger,
)
from sdlora.stages.caption.recipe import CaptionRecipe
from sdlora.stages.evaluate.recipe import EvaluateRecipe
from sdlora.stages.flip.flip import flip_dataset, swap_left_right

SETTINGS = Caption(max_new_tokens=40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for number in range(1, 4):
        source = ROOT / "data/embedded/captain/train" / f"{number:03d}.png"
        with Image.open(source) as picture:
            square = picture.convert("RGB").resize((64, 64))
        records.write_bytes(tmp_path / "set/pictures" / f"p{number}.png", png_bytes(square))
        split = "reference" if number == 3 else "train"
        row = {
            "id": f"p{number}",
            "name": f"{number}.png",
            "file": f"pictures/p{number}.png",
            "split": split,
            "caption": None,
        }
        rows.append({**row, "box": [0, 0, 64, 64], "bucket": [64, 64], "original": [64, 64], "corner": [0, 0]})
    records.write_jsonl(tmp_path / "set" / "fit.jsonl", rows)
    return tmp_path / "set"


class Counting(Blip):
    """The real captioner, counting the pictures it is shown."""

    seen = 0

    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        self.seen += len(pictures)
        return super().captions(pictures)


def captioner() -> Counting:
    return Counting(str(ROOT / "models/tiny-blip"), None, SETTINGS, threads=2)


def caption(
    folder: Path, blip: Captioner, override: str | None = None, undesired_tags: tuple[str, ...] = (), **settings: float
) -> dict[str, str]:
    recipe = CaptionRecipe(
        undesired_tags=undesired_tags,
        wildcards={}, caption=SETTINGS.model_copy(update=settings), captioner="-", captioner_identity="x",
        captioner_revision=None, trigger="captain", threads=2, override=override, overrides=None,
    )  # fmt: skip
    caption_dataset(recipe, blip, folder, folder.parent / "store")
    return {row["id"]: row["caption"] for row in records.read_jsonl(folder / "captions.jsonl")}


class Fixed:
    """A captioner that sees nothing."""

    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        return ["a head"] * len(pictures)


class Corner:
    """A captioner that says the colour of a corner, and remembers how many pictures it was shown at once."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        self.shown.append(len(pictures))
        return [str(picture.getpixel((0, 0))) for picture in pictures]


def test_fit_flip_and_caption_say_how_far_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """100,000 pictures take hours."""
    folder = make_set(tmp_path, {f"{n}.png": noise(64, 64, n) for n in range(3)}, encode=False)
    caption(folder, Fixed())
    said = capsys.readouterr().err.splitlines()
    for stage in ("fit", "flip", "caption"):
        last = [line for line in said if line.startswith(f"{stage}: ")][-1]
        assert re.fullmatch(rf"{stage}: 3/3  \d+\.\d\d it/s, 0 s to go", last)


@pytest.mark.slow
def test_only_new_pictures_are_captioned(folder: Path) -> None:
    blip = captioner()
    first = caption(folder, blip)
    assert blip.seen == 3
    assert all(text.startswith("captain, ") and len(text) > 15 for text in first.values())
    assert caption(folder, blip) == first
    assert blip.seen == 3
    rows = records.read_jsonl(folder / "fit.jsonl")
    records.write_bytes(folder / "p4.png", png_bytes(Image.new("RGB", (64, 64), "red")))
    records.write_jsonl(folder / "fit.jsonl", [*rows, {**rows[0], "id": "p4", "file": "p4.png", "name": "4.png"}])
    assert len(caption(folder, blip)) == 4
    assert blip.seen == 4


@pytest.mark.slow
def test_a_caption_does_not_depend_on_the_other_pictures(folder: Path, tmp_path: Path) -> None:
    together = caption(folder, captioner())
    rows = records.read_jsonl(folder / "fit.jsonl")
    for row in reversed(rows):
        records.write_jsonl(folder / "fit.jsonl", [row])
        (tmp_path / "store").rename(tmp_path / f"store-{row['id']}")
        assert caption(folder, captioner()) == {row["id"]: together[row["id"]]}


def test_each_picture_of_a_batch_gets_its_own_caption_and_the_last_batch_may_be_short(tmp_path: Path) -> None:
    folder = make_set(tmp_path, {f"{n}.png": noise(64, 64, n) for n in range(7)}, encode=False)
    alone, batches = Corner(), Corner()
    expected = caption(folder, alone)
    assert len(set(expected.values())) == 7
    (tmp_path / "store").rename(tmp_path / "store-alone")
    assert caption(folder, batches, batch_size=3) == expected
    assert (alone.shown, batches.shown) == ([1] * 7, [3, 3, 1])
    kept = sorted((tmp_path / "store").iterdir())
    assert len(kept) == 7
    kept[0].unlink()
    assert caption(folder, batches, batch_size=3) == expected
    assert batches.shown[3:] == [1], "what is known is shown to nobody"


def test_another_batch_size_asks_anew_and_one_is_what_was_asked_before_there_was_a_choice(tmp_path: Path) -> None:
    folder = make_set(tmp_path, {f"{n}.png": noise(64, 64, n) for n in range(3)}, encode=False)
    captioner = Corner()
    for settings in ({}, {"batch_size": 1}, {"batch_size": 2}, {"batch_size": 2}):
        caption(folder, captioner, **settings)
    assert captioner.shown == [1, 1, 1, 2, 1]


def test_a_batch_size_is_said_of_captions_alone_and_its_default_of_nothing(tmp_path: Path) -> None:
    """Samples are described one by one, so nothing is measured anew."""

    def said(settings: str) -> list[dict[str, Any]]:
        section = ("defaults:\n", f"defaults:\n  caption: {{{settings}}}\n")
        metrics = ("evaluate: {", "evaluate: {metrics: [prompt_recall], choose_by: prompt_recall, ")
        params = edited(tmp_path, section, metrics)
        jobs = [job for job in plan.jobs(params) if isinstance(job, CaptionRecipe | EvaluateRecipe)]
        assert {job.stage for job in jobs} == {"caption", "evaluate"}
        return [job.identity() for job in jobs]

    before, default, eight = said("num_beams: 1"), said("batch_size: 1"), said("batch_size: 8")
    assert before == default and "batch_size" not in str(before)
    assert [one["stage"] for one, other in zip(before, eight, strict=True) if one != other] == ["caption"]


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 3])
def test_pictures_captioned_together_have_the_captions_they_have_alone(num_beams: int) -> None:
    """Of different lengths, so that some are done before others; `docs/large-sets.md` has the share of a larger set."""
    pictures = [read_rgb(path) for path in sorted((ROOT / "data/embedded").glob("*/train/*.png"))[::12]]
    settings = SETTINGS.model_copy(update={"num_beams": num_beams})
    blip = Blip(str(ROOT / "models/tiny-blip"), None, settings, threads=1)
    alone = [text for picture in pictures for text in blip.captions([picture])]
    assert len(pictures) > 9 and len({len(text.split()) for text in alone}) > 3
    assert blip.captions(pictures) == alone


def test_a_batch_that_does_not_fit_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        device = "cpu"

        def generate(self, **_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def processor(**_: object) -> BatchFeature:
        return BatchFeature()

    blip = Blip("-", None, Caption(batch_size=32, num_beams=2), threads=1)
    monkeypatch.setattr(blip, "_load", lambda: (processor, Full()))
    with pytest.raises(ResourceError, match=r"full.*caption\.batch_size: 1 \(it is 32\) or caption\.num_beams: 1 \(it"):
        blip.captions([Image.new("RGB", (64, 64))])


@pytest.mark.slow
def test_a_users_caption_wins(folder: Path, tmp_path: Path) -> None:
    override = tmp_path / "mine.jsonl"
    records.write_jsonl(override, [{"file": "1.png", "caption": "at the helm"}, {"id": "p2", "caption": "asleep"}])
    texts = caption(folder, captioner(), str(override))
    assert (texts["p1"], texts["p2"]) == ("captain, at the helm", "captain, asleep")


def test_the_trigger_alone_needs_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = CaptionRecipe(
        wildcards={}, caption=Caption(by="none"), captioner="nobody/has-this", captioner_identity="the trigger alone",
        captioner_revision=None, trigger="captain", threads=1, override=None, overrides=None,
    )  # fmt: skip
    caption_dataset(recipe, captioner_of(recipe), folder, folder.parent / "store")
    rows = records.read_jsonl(folder / "captions.jsonl")
    assert {(row["caption"], row["origin"]) for row in rows} == {("captain", "the trigger alone")}
    assert "caption: 3 new, 0 known, 0 of captions_override, 0 that came with" in capsys.readouterr().out
    first, *others = records.read_jsonl(folder / "fit.jsonl")
    records.write_jsonl(folder / "fit.jsonl", [{**first, "caption": "at sea"}, *others])
    caption_dataset(recipe, captioner_of(recipe), folder, folder.parent / "store")
    assert "caption: 0 new, 2 known, 0 of captions_override, 1 that came with" in capsys.readouterr().out
    for key in ("num_beams", "batch_size"):
        with pytest.raises(ValidationError, match=f"{key} is 4, but by is none"):
            Caption.model_validate({"by": "none", key: 4})
    with pytest.raises(ValidationError, match=r"'blop' is not on the menu.*did you mean blip"):
        Caption(by="blop")


@pytest.mark.slow
def test_what_every_picture_shows_is_left_to_the_trigger_and_no_picture_is_captioned_again(folder: Path) -> None:
    blip = captioner()
    whole = {key: text.split(", ") for key, text in caption(folder, blip).items()}
    pruned = {key: text.split(", ") for key, text in caption(folder, blip, prune_shared_tags=1.0).items()}
    shared = {*whole["p1"]} & {*whole["p2"]} - {"captain"}
    assert "teal undercut hair" in shared
    assert pruned == {key: [tag for tag in tags if tag not in shared] for key, tags in whole.items()}
    assert blip.seen == 3


def test_a_tag_is_left_out_from_a_share_on_and_what_a_person_wrote_stays() -> None:
    said = ["teal hair, smile", "teal hair,frown, smile", "teal hair, hat", "blue hair"]
    rows = [{"caption": text, "origin": "source", "split": "train"} for text in said]
    rows += [{"caption": "teal hair, hat", "origin": origin, "split": "reference"} for origin in ("override", "source")]
    assert prune(rows, 0.75) == {"teal hair"}
    assert [row["caption"] for row in rows] == ["smile", "frown, smile", "hat", "blue hair", "teal hair, hat", "hat"]
    assert prune(rows, 0.5) == {"smile"}
    with pytest.raises(ValidationError, match=r"prune_shared_tags is 0\.5, but by is none"):
        Caption(by="none", prune_shared_tags=0.5)


def test_undesired_tags_are_left_out_by_their_last_words_but_not_of_what_a_person_wrote() -> None:
    said = ["red square Glasses, smile", "sunglasses, brown hat,smile", "hat trick, smile"]
    rows = [{"caption": text, "origin": "blip", "split": "train"} for text in said]
    rows.append({"caption": "red glasses, smile", "origin": "override", "split": "reference"})
    assert leave_out(rows, ["glasses", "Hat", "smiles"]) == ["smiles"]
    assert [row["caption"] for row in rows] == ["smile", "sunglasses, smile", "hat trick, smile", "red glasses, smile"]


@pytest.mark.slow
def test_an_undesired_tag_is_a_datasets_own_and_one_that_no_caption_has_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blip = captioner()
    whole = caption(folder, blip)
    assert all("hair" in text for text in whole.values())
    without = caption(folder, blip, undesired_tags=("hair", "eyebrow"))
    assert not any("hair" in text for text in without.values())
    assert "warning: undesired_tags: no caption has 'eyebrow'; did you mean eyebrows?" in capsys.readouterr().out
    assert blip.seen == 3, "no picture is captioned again"


def captions(learnt: list[str], asked: list[str]) -> list[dict[str, str]]:
    rows = [{"id": f"t{n}", "caption": text, "origin": "blip", "split": "train"} for n, text in enumerate(learnt)]
    return rows + [
        {"id": f"r{n}", "caption": text, "origin": "x", "split": "reference"} for n, text in enumerate(asked)
    ]


def test_captions_that_disagree_with_the_prompts_or_are_all_alike_are_told() -> None:
    good = ["captain, teal hair, smile", "captain, teal hair, sad mouth"]
    assert not list(warnings(captions(good, ["captain, teal hair, sad smile"]), "captain"))
    (alike,) = warnings(captions(["captain"] * 3, []), "captain")
    assert alike.startswith("all 3 training captions are 'captain'")
    (other,) = warnings(captions(["captain, lavender ears", "captain, tan bust"], [good[0]]), "captain")
    assert other.startswith("3 of the 3 words") and "(hair, smile, teal; training captions by blip)" in other
    (most,) = warnings(captions(good, ["captain, teal hair, eye patch, red coat"]), "captain")
    assert "4 of the 6 words" in most, most
    assert not list(warnings(captions(good, []), "captain")), "without references nothing is asked"


ROW = '{"file": "1.png", "caption": "caf\N{LATIN SMALL LETTER E WITH ACUTE}, smile"}\n'


def test_an_override_with_a_byte_order_mark_and_odd_line_breaks_in_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(("\ufeff" + ROW.replace("smile", "smile\u2028\u0085 wide").replace("\n", "\r\n")).encode())
    found = read_overrides(str(path), [{"name": "1.png", "id": "p1"}])
    assert found["p1"].startswith("caf\xe9, smile\u2028\u0085 wide")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROW.encode("utf-16"), r"mine\.jsonl:1: byte 0xff is not UTF-8"),
        (("\n" + ROW).encode("cp1252"), r"mine\.jsonl:2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b'["1.png", "x"]', r"mine\.jsonl:1: a list, where an object with file and caption is wanted"),
        (b'[\n{"file": "1.png"}\n]', r"mine\.jsonl:1: not JSON"),
        (b"1.png,smile", r"mine\.jsonl:1: not JSON"),
        (b"[" * 100_000, r"mine\.jsonl:1: not JSON"),
        (b'{"file": ["1.png"], "caption": "x"}', r"mine\.jsonl:1: needs id or file, and caption, as texts"),
        (b'{"file": "1.png", "caption": 3}', r"mine\.jsonl:1: needs id or file, and caption, as texts"),
    ],
)
def test_an_override_that_cannot_be_read_is_told(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_overrides(str(tmp_path / "mine.jsonl"), [{"name": "1.png", "id": "p1"}])


def test_an_override_that_is_a_folder_or_missing_is_told(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file or directory")):
        with pytest.raises(DataError, match=f"captions_override: cannot read the file '{path}': {reason}"):
            read_overrides(str(path), [])


def test_an_override_for_an_unknown_picture_is_an_error(tmp_path: Path) -> None:
    records.write_jsonl(tmp_path / "mine.jsonl", [{"file": "01.png", "caption": "x"}])
    with pytest.raises(DataError, match=r"mine.jsonl:1: no picture '01.png'; did you mean 1.png"):
        read_overrides(str(tmp_path / "mine.jsonl"), [{"name": "1.png", "id": "p1"}])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"file": "1.png"}, r"mine.jsonl:2: a second caption for '1.png', which has one in line 1; keep one"),
        ({"id": "p1"}, r"mine.jsonl:2: a second caption for 'p1', which has one in line 1; keep one"),
        ({"file": "2.png"}, r"mine.jsonl:2: 2 pictures are called '2.png': say which by id, as manifest.jsonl has it"),
    ],
)
def test_an_override_says_once_what_one_picture_shows(second: dict[str, str], message: str, tmp_path: Path) -> None:
    """Two folders may have a 2.png each."""
    pictures = [{"name": f"{name}.png", "id": f"p{id}"} for name, id in ((1, 1), (2, 2), (2, 3))]
    first = {"file": "1.png", "caption": "x"}
    records.write_jsonl(tmp_path / "mine.jsonl", [first, {"id": "p3", "caption": "z"}])
    assert read_overrides(str(tmp_path / "mine.jsonl"), pictures) == {"p1": "x", "p3": "z"}
    records.write_jsonl(tmp_path / "mine.jsonl", [first, {**second, "caption": "y"}])
    with pytest.raises(DataError, match=message):
        read_overrides(str(tmp_path / "mine.jsonl"), pictures)


def test_trigger_comes_first_and_once() -> None:
    assert with_trigger("captain", "a man") == "captain, a man"
    assert with_trigger("captain", "Captain at sea") == "Captain at sea"
    assert with_trigger("captain", "") == "captain"
    assert with_trigger("levi", "leviathan at sea") == "levi, leviathan at sea"
    for caption in ("Hatsune_miku_(vocaloid), solo", "hatsune_miku_(vocaloid)"):
        assert with_trigger("hatsune_miku_(vocaloid)", caption) == caption
    assert tidy("teal hair , red shirt ,") == "teal hair, red shirt"


def test_missing_captioner_says_how_to_get_it() -> None:
    blip = Blip("Salesforce/blip-image-captioning-base", None, SETTINGS, threads=2)
    with pytest.raises(MissingError, match="hf download Salesforce/blip-image-captioning-base"):
        blip.captions([Image.new("RGB", (64, 64))])


def test_flip_writes_both_orientations(folder: Path) -> None:
    rows = [{"id": "p1", "caption": "captain on the Left", "split": "train"}]
    rows.append({"id": "p3", "caption": "captain", "split": "reference"})
    records.write_jsonl(folder / "captions.jsonl", rows)
    flip_dataset(folder, mirror=True, swap_words=True)
    metadata = records.read_jsonl(folder / "train" / "metadata.jsonl")
    assert [row["text"] for row in metadata] == ["captain on the Left", "captain on the Right"]
    plain, mirrored = (read_rgb(folder / "train" / row["file_name"]) for row in metadata)
    assert plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes() == mirrored.tobytes()
    flip_dataset(folder, mirror=False, swap_words=True)
    assert [row["mirrored"] for row in records.read_jsonl(folder / "train" / "metadata.jsonl")] == [False]
    assert not (folder / "train" / "p1.flip.png").exists()


def test_left_and_right_change_places() -> None:
    assert swap_left_right("LEFT of the right, leftover") == "RIGHT of the left, leftover"
    assert swap_left_right("looking_to_the_left, right_arm, bright") == "looking_to_the_right, left_arm, bright"


def test_a_trigger_keeps_its_own_left_and_right(folder: Path) -> None:
    assert swap_left_right("Left shark, on the left", "left shark") == "Left shark, on the right"
    rows = [{"id": "p1", "caption": "left shark on the left", "split": "train"}]
    records.write_jsonl(folder / "captions.jsonl", rows)
    flip_dataset(folder, mirror=True, swap_words=True, trigger="left shark")
    metadata = records.read_jsonl(folder / "train" / "metadata.jsonl")
    assert [row["text"] for row in metadata] == ["left shark on the left", "left shark on the right"]
