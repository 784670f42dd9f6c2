"""What is like a new picture is found among many as it is found one by one, and a judge's set stays right."""

import random

import pytest

from sdlora.config.sources import Scrape
from sdlora.stages.scrape.judge import Arrived, Judge
from sdlora.stages.scrape.looks import ROOM, Looks
from sdlora.stages.scrape.source import Candidate
from sdlora.stages.scrape.verify import Look

DRAWN = random.Random(5)


def look(bits: int, colour: int = 128, side_px: int = 512) -> Look:
    return Look("PNG", side_px, side_px, f"{bits:032x}", f"{colour:02x}" * 192)


def near(bits: int, flips: int) -> int:
    for place in DRAWN.sample(range(128), flips):
        bits ^= 1 << place
    return bits


@pytest.mark.parametrize("bits", [-1, 0, 6, 128])
def test_many_at_once_are_as_one_by_one(bits: int) -> None:
    kinds = [DRAWN.getrandbits(128) for _ in range(40)]
    made = [look(near(DRAWN.choice(kinds), DRAWN.randrange(9)), DRAWN.choice((120, 126, 133))) for _ in range(ROOM + 9)]
    looks = Looks()
    for one in made:
        looks.append(one)
    for place in (0, 7, ROOM + 8):
        made[place] = look(kinds[place % 40])
        looks.replace(place, made[place])
    for asked in (*made[:20], *made[-5:], look(0)):
        assert looks.same_as(asked, bits) == [n for n, one in enumerate(made) if asked.same_as(one, bits)]


def take(judge: Judge, name: str, found: Look, chosen: bool = False, source: int = 0) -> None:
    candidate = Candidate("bing", 0, url=None if chosen else f"http://host/{name}", content=b"-" if chosen else None)
    judge.take(source, candidate, Arrived(name * 64, 1, found))


def test_a_picture_that_was_replaced_or_lost_is_no_copy_of_what_comes_later() -> None:
    judge, shape = Judge(Scrape(duplicate_bits=6)), DRAWN.getrandbits(128)
    take(judge, "a", look(shape))
    take(judge, "b", look(near(shape, 6), side_px=1024), source=1)
    assert [entry.arrived.sha256[0] for entry in judge.entries] == ["b"], "it has more pixels"
    assert (judge.accepted_of(0), judge.accepted_of(1)) == (1, 0), "found by the first source first"
    take(judge, "b", look(0), source=1)
    assert judge.counts() == (1, 0, 2), "the same bytes are a copy, whatever is said of their look"
    assert [file for _, file in judge.take_unused()] == [f"{'a' * 64}.png"], "b's file is the set's"
    judge.lose(judge.entries[0], "gone")
    assert (judge.entries, judge.accepted_of(0)) == ([], 0)
    take(judge, "c", look(shape), source=1)
    assert [entry.arrived.sha256[0] for entry in judge.entries] == ["c"] and judge.accepted_of(1) == 1


def test_who_chose_two_that_are_alike_wanted_both_and_a_search_s_copy_of_one_goes() -> None:
    judge, shape = Judge(Scrape()), DRAWN.getrandbits(128)
    take(judge, "a", look(shape), chosen=True)
    take(judge, "b", look(shape), chosen=True)
    take(judge, "c", look(shape, side_px=1024))
    assert [entry.arrived.sha256[0] for entry in judge.entries] == ["a", "b"]
