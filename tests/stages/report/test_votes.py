"""Blind votes: read back as a page saves them, counted for the pictures that were seen, ranked by Wilson's bound."""

from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest

from sdlora import records
from sdlora.errors import DataError
from sdlora.stages.report.votes import Vote, ballot, read_votes, tally

VOTE = Vote("r1", "42", "v8/300", "v8/0", ("aaa", "bbb"))
PICTURES = {("v8/300", "r1", "42"): "aaa", ("v8/0", "r1", "42"): "bbb"}


def test_what_a_page_saves_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    assert read_votes(path) == []
    records.write_jsonl(path, [VOTE.row(), VOTE.row()])
    assert read_votes(path) == [VOTE, VOTE], "without an id nobody can tell them apart"


def test_a_vote_that_was_added_twice_counts_once(tmp_path: Path) -> None:
    """A page that was saved twice has the first votes in both files."""
    path, other = tmp_path / "votes.jsonl", replace(VOTE, id="0b")
    records.write_jsonl(path, [one.row() for one in (VOTE, other, replace(VOTE, id="0c"), other)])
    assert read_votes(path) == [VOTE, other, replace(VOTE, id="0c")] and "id" not in VOTE.row()


@pytest.mark.parametrize(
    "line",
    ["{", "3", "[]", "{}", '{"reference": "r", "seed": "1", "winner": "v8", "loser": "v8/0", "pictures": ["a", "b"]}',
     '{"reference": "r", "seed": 1, "winner": "v8/1", "loser": "v8/0", "pictures": ["a", "b"]}',
     '{"reference": "r", "seed": "1", "winner": "v8/1", "loser": "v8/0", "pictures": ["a"]}', "[" * 9000,
     '{"reference": "r", "seed": "1", "winner": "v8/1", "loser": "v8/0", "pictures": ["a", "b"], "id": 3}'],
)  # fmt: skip
def test_a_line_that_is_no_vote_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "votes.jsonl"
    records.write_jsonl(path, [VOTE.row()])
    path.write_text(path.read_text("utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"votes\.jsonl:2: this is no vote as a page saves it"):
        read_votes(path)


@pytest.mark.parametrize("content", ["caf\xe9".encode("latin-1"), "x".encode("utf-16")])
def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "votes.jsonl"
    records.write_jsonl(path, [VOTE.row()])
    path.write_bytes(path.read_bytes() + content + b"\n")
    with pytest.raises(DataError, match=r"votes\.jsonl:2: this is no vote as a page saves it \('utf-8' codec can't"):
        read_votes(path)


def test_a_vote_counts_for_the_pictures_that_were_seen() -> None:
    found = tally([VOTE, VOTE], PICTURES)
    assert (found["v8/300"]["won"], found["v8/300"]["of"]) == (2, 2)
    assert (found["v8/0"]["won"], found["v8/0"]["of"]) == (0, 2)
    drawn_anew = {**PICTURES, ("v8/300", "r1", "42"): "ccc"}
    assert tally([VOTE], drawn_anew).keys() == {"v8/0"}


@pytest.mark.parametrize(("won", "of"), [(2, 2), (18, 20), (0, 5), (7, 9), (50, 100)])
def test_wilsons_lower_bound(won: int, of: int) -> None:
    share, z = won / of, 1.959964
    centre, half = share + z * z / (2 * of), z * sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    assert ballot([True] * won + [False] * (of - won))["at_least"] == pytest.approx(
        (centre - half) / (1 + z * z / of), abs=1e-4
    )


def test_few_wins_rank_below_many() -> None:
    assert ballot([True] * 2)["at_least"] < ballot([True] * 18 + [False] * 2)["at_least"]
