"""What people voted for, blind: `votes.jsonl` beside `params.yaml`, as a page saves it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from sdlora import records
from sdlora.errors import DataError

DIGITS = 12  # of a picture's sha256, by which a vote knows what it saw
Side = tuple[str, int]  # version and step
Ballot = dict[str, float | int]  # won, of, at_least


@dataclass(frozen=True)
class Vote:
    """One of two pictures of a prompt, unnamed, was nearer to the reference."""

    reference: str
    seed: str
    winner: str  # "v8/300": version and step
    loser: str
    pictures: tuple[str, str]  # sha256 of the winner's and of the loser's, its first digits
    id: str = ""  # of the vote alone; pages of before gave none

    def row(self) -> dict[str, Any]:
        """As it stands in the file."""
        found = {**asdict(self), "pictures": [*self.pictures]}
        return found if self.id else {key: value for key, value in found.items() if key != "id"}


def read_votes(path: Path) -> list[Vote]:
    """All votes, one that was added twice once; no file holds none.

    Raises:
        DataError: Names the line that is no vote, and what is wrong with it.
    """
    if not path.exists():
        return []
    found: list[Vote] = []
    known: set[str] = set()
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                vote = _vote(records.parse_json(line.decode("utf-8")))
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{path}:{number}: this is no vote as a page saves it ({error})") from None
            if not vote.id or vote.id not in known:
                found.append(vote)
            known.add(vote.id)
    return found


def _vote(row: Any) -> Vote:
    reference, seed, winner, loser = (row[key] for key in ("reference", "seed", "winner", "loser"))
    pictures, own = row["pictures"], row.get("id", "")
    texts = (reference, seed, winner, loser, *pictures, own)
    if not all(isinstance(text, str) for text in texts) or len(pictures) != 2:
        raise ValueError("its values are texts, and pictures are two")
    for side in (winner, loser):
        version, _, step = side.rpartition("/")
        if not version or not step.isdecimal():
            raise ValueError(f"{side!r} is no version and step such as v8/300")
    return Vote(reference, seed, winner, loser, (pictures[0], pictures[1]), own)


def tally(votes: Iterable[Vote], pictures: Mapping[tuple[str, str, str], str]) -> dict[str, Ballot]:
    """How often each checkpoint won, and the share of wins it has at least.

    A vote counts for a side whose picture is still the one that was seen: a version that was trained or drawn anew
    starts again.

    Args:
        votes: In any order.
        pictures: (version/step, reference, seed) -> the picture's hash.

    Returns:
        By version/step: `won`, `of`, and `at_least`, Wilson's lower bound.
    """
    found: dict[str, list[bool]] = {}
    for vote in votes:
        for side, picture, won in ((vote.winner, vote.pictures[0], True), (vote.loser, vote.pictures[1], False)):
            if pictures.get((side, vote.reference, vote.seed)) == picture:
                found.setdefault(side, []).append(won)
    return {side: ballot(outcomes) for side, outcomes in found.items()}


def ballot(outcomes: Sequence[bool]) -> Ballot:
    """Wins, votes, and the lower end of Wilson's 95 % interval of their share (Wilson 1927, JASA 22, 209).

    A checkpoint that won 2 of 2 (0.34) is ranked below one that won 18 of 20 (0.70).
    """
    interval = binomtest(sum(outcomes), len(outcomes)).proportion_ci(0.95, method="wilson")
    return {"won": sum(outcomes), "of": len(outcomes), "at_least": round(float(interval.low), 4)}
