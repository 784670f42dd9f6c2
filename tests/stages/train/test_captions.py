"""Captions that vary from draw to draw, and captions that are too long."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import TINY
from small_set import CAPTION, captain, edited, examples_of, make_set
from training import settings, small_base

from sdlora.config.params import Flip
from sdlora.config.train import Train
from sdlora.errors import DataError, ParamsError
from sdlora.models import ModelFamily, load_model
from sdlora.stages.train.batch import Batch, draw_batch
from sdlora.stages.train.captions import all_captions, check_lengths, drawn_caption
from sdlora.stages.train.dataset import Example
from sdlora.stages.train.run import prepare

TAGS = [f"tag {n}" for n in range(8)]
TEXT = ", ".join(["captain", *TAGS])


def drawn(draws: int = 400, **options: object) -> list[list[str]]:
    train = settings(**options)
    return [drawn_caption(TEXT, train, draw, "p0").split(", ") for draw in range(draws)]


def test_nothing_changes_by_default() -> None:
    spaced = "captain,  a b ,c"
    assert drawn_caption(spaced, settings(), 3, "p0") == spaced


@pytest.mark.parametrize("keep", [1, 3])
def test_shuffling_keeps_the_first_tags_and_all_others(keep: int) -> None:
    whole = ["captain", *TAGS]
    found = drawn(shuffle_tags=True, keep_tokens=keep)
    assert all(tags[:keep] == whole[:keep] and sorted(tags) == sorted(whole) for tags in found)
    firsts = Counter(tags[keep] for tags in found)
    assert set(firsts) == set(whole[keep:])
    assert max(firsts.values()) < 2 * len(found) / len(firsts), "every order is as likely"


def test_dropping_tags_keeps_the_trigger_and_the_order() -> None:
    found = drawn(tag_dropout=0.3)
    assert all(tags[0] == "captain" for tags in found)
    assert all(tags[1:] == [tag for tag in TAGS if tag in tags] for tags in found)
    kept = sum(len(tags) - 1 for tags in found) / len(found) / len(TAGS)
    assert kept == pytest.approx(0.7, abs=0.03)
    both = drawn(tag_dropout=0.3, shuffle_tags=True)
    assert [sorted(tags) for tags in both] == [sorted(tags) for tags in found], "which are dropped is another draw"


def test_dropping_captions() -> None:
    train = settings(caption_dropout=0.2)
    found = [drawn_caption(TEXT, train, draw, "p0") for draw in range(1000)]
    assert set(found) == {TEXT, ""}
    assert found.count("") == pytest.approx(200, abs=40)
    assert all_captions([TEXT, TEXT], train) == ["", TEXT]
    assert all_captions([TEXT], settings()) == [TEXT]


def test_a_caption_is_a_function_of_seed_draw_and_picture() -> None:
    options = {"shuffle_tags": True, "tag_dropout": 0.3, "caption_dropout": 0.1}
    assert drawn(50, **options) == drawn(50, **options)
    assert drawn(50, **options) != drawn(50, **options, seed=1)
    train = settings(**options)
    assert drawn_caption(TEXT, train, 0, "p0") != drawn_caption(TEXT, train, 0, "p1")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Example], Batch]:
    """A picture, and the first batch where captions are what they are."""
    examples = examples_of(make_set(tmp_path_factory.mktemp("plain"), {"a.png": captain(1)}, mirror=False))
    return examples, draw_batch(prepare(settings(batch_size=4), Flip(), small_base(), examples), 0, 0)


@pytest.mark.parametrize(
    "option",
    [
        {"shuffle_tags": True},
        {"tag_dropout": 0.5},
        {"caption_dropout": 0.9},
        {"tag_dropout": 0.9, "keep_tokens": 3},
    ],
    ids=str,
)
def test_every_option_changes_what_the_unet_is_told(
    plain: tuple[list[Example], Batch], option: dict[str, object]
) -> None:
    examples, before = plain
    batch = draw_batch(prepare(settings(batch_size=4, **option), Flip(), small_base(), examples), 0, 0)
    assert torch.equal(batch.noise, before.noise), "captions have no part in the noise"
    assert not torch.equal(batch.conditioning["context"], before.conditioning["context"])


def test_mirrored_captions_stay_as_they_are(tmp_path: Path) -> None:
    example = examples_of(make_set(tmp_path, {"a.png": captain(1)}))[0]
    assert example.text == (CAPTION, CAPTION.replace("left", "right"))
    mirrored = drawn_caption(example.text[1], settings(shuffle_tags=True), 0, "p0")
    assert "black coat on the right" in mirrored


@pytest.mark.parametrize("cache", ["disk", "ram"])
@pytest.mark.parametrize("option", [{"shuffle_tags": True}, {"tag_dropout": 0.1}], ids=str)
def test_changing_captions_cannot_be_cached(cache: str, option: dict[str, object]) -> None:
    name = next(iter(option))
    with pytest.raises(ValueError, match=f"cache_text: {cache} cannot hold captions that {name} makes anew"):
        Train(cache_text=cache, **option)
    assert Train(**option).text_cache == "none"
    assert Train().text_cache == Train(caption_dropout=0.1).text_cache == "ram"


def test_keep_tokens_needs_something_to_keep_from() -> None:
    with pytest.raises(ValueError, match="keep_tokens has no effect without shuffle_tags or tag_dropout"):
        Train(keep_tokens=2)


def test_a_trigger_of_two_tags_needs_both_kept(tmp_path: Path) -> None:
    trigger = ("trigger: captain\n", "trigger: captain, pirate\n")
    with pytest.raises(
        ParamsError, match=r"a\.train\.keep_tokens: 1 is too few: the trigger 'captain, pirate' .* has 2 tags"
    ):
        edited(tmp_path, trigger, ("rank: 2", "rank: 2, shuffle_tags: true"))
    kept = edited(tmp_path, trigger, ("rank: 2", "rank: 2, shuffle_tags: true, keep_tokens: 2"))
    assert kept.versions["a"].train.keep_tokens == 2


@pytest.fixture(scope="module")
def tiny() -> ModelFamily:
    return load_model(TINY)


def test_long_captions_are_told(tiny: ModelFamily, capsys: pytest.CaptureFixture[str]) -> None:
    word = next(word for word in ("smile", "brown", "coat") if tiny.token_counts([word]) == [1])
    fits, long, longer = (" ".join([word] * count) for count in (75, 76, 90))
    assert tiny.token_counts([fits, "", longer]) == [75, 0, 90]
    assert check_lengths(tiny, [fits, CAPTION]) == []
    assert capsys.readouterr().out == ""
    assert check_lengths(tiny, [fits, long, longer]) == [longer, long]
    said = capsys.readouterr().out
    assert "warning: 2 of 3 captions are longer than 75 tokens" in said and "has 90" in said
    # what the encoder is given ends where the count says
    one, other = (tiny.encode_prompts([text])["context"] for text in (fits, f"{fits} {word}"))
    assert torch.equal(one, other)


def test_a_trigger_that_would_be_cut_off_is_an_error(tiny: ModelFamily) -> None:
    with pytest.raises(DataError, match=r"trigger: .* has 80 tokens, but the text encoder reads 75"):
        check_lengths(tiny, ["x"], " ".join(["smile"] * 80 if tiny.token_counts(["smile"]) == [1] else ["a"] * 80))
