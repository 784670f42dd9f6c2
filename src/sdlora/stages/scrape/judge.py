"""Which candidates become the dataset. Pure: the verdicts depend on the order of the candidates and on nothing else."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from sdlora.config.sources import Scrape
from sdlora.records import Row
from sdlora.stages.scrape.looks import Looks
from sdlora.stages.scrape.source import Candidate
from sdlora.stages.scrape.split import lies_in
from sdlora.stages.scrape.verify import Look


@dataclass(frozen=True)
class Arrived:
    """A candidate whose file is here and could be decoded."""

    sha256: str
    size_bytes: int
    look: Look
    final_url: str | None = None

    @property
    def file(self) -> str:
        """Its name in `raw/`."""
        return f"{self.sha256}.{self.look.format.lower()}"


@dataclass(frozen=True)
class Refused:
    """A candidate without a usable file."""

    kind: str
    reason: str
    sha256: str | None = None


@dataclass(frozen=True)
class Entry:
    """An accepted picture."""

    source: int  # the place of the first source that found it
    candidate: Candidate  # without its bytes, which are in a file by now
    arrived: Arrived
    is_chosen: bool  # by somebody (a folder, a captioned dataset) rather than by a search

    @property
    def id(self) -> str:
        """What the picture is called from here on, if it stays."""
        return self.arrived.sha256[:16]


@dataclass
class Judge:
    """Takes candidates in order and keeps the set."""

    limits: Scrape
    held_out: str = ""  # the subfolder of references; of the same bytes the file in it stays
    entries: list[Entry] = field(default_factory=list)
    rejected: list[Row] = field(default_factory=list)
    seen: Counter[int] = field(default_factory=Counter)  # candidates by source
    unused: list[tuple[Candidate, str]] = field(default_factory=list)  # rejected, with their files, not yet deleted
    _kinds: dict[int, Counter[str]] = field(default_factory=dict)
    # of `entries`, for a set may have 100,000: by source, by file, and by looks
    _accepted: Counter[int] = field(default_factory=Counter)
    _places: dict[str, int] = field(default_factory=dict)
    _looks: Looks = field(default_factory=Looks)

    def accepted_of(self, source: int) -> int:
        """How many of the set's pictures a source was the first to find."""
        return self._accepted[source]

    def counts(self) -> tuple[int, int, int]:
        """Accepted, rejected for other reasons, duplicates."""
        duplicates = sum(kinds["duplicate"] for kinds in self._kinds.values())
        return len(self.entries), len(self.rejected) - duplicates, duplicates

    def take(self, source: int, candidate: Candidate, result: Arrived | Refused) -> None:
        """Decide about the next candidate."""
        self.seen[source] += 1
        if isinstance(result, Refused):
            self._reject(source, candidate, result.kind, result.reason, result)
            return
        entry = Entry(source, candidate.without_content(), result, candidate.content is not None)
        look, least = result.look, self.limits.min_side_px
        if not entry.is_chosen and min(look.width_px, look.height_px) < least:
            self._reject(source, candidate, "small", f"{look.width_px} x {look.height_px} px; {least} is least", result)
            return
        copies = self._copies_of(entry)
        if not copies:
            self._add(entry)
            return
        nearest = min(copies, key=lambda known: (known.arrived.sha256 != result.sha256, _bits(known, entry)))
        # A picture that is like two of the set would, in the place of one, stand beside the other.
        if len(copies) == 1 and self._replaces(entry, nearest):
            place = self._places.pop(nearest.arrived.file)
            self.entries[place] = _captioned(replace(entry, source=nearest.source), nearest)
            self._places[result.file] = place
            self._looks.replace(place, look)
            self._reject_copy(nearest, entry)
        else:
            place = self._places[nearest.arrived.file]
            self.entries[place] = _captioned(nearest, entry)
            self._reject_copy(entry, nearest)

    def take_unused(self) -> list[tuple[Candidate, str]]:
        """Candidates whose files nobody needs any more, each once."""
        found, self.unused = [one for one in self.unused if one[1] not in self._places], []
        return found

    def lose(self, entry: Entry, reason: str) -> None:
        """Reject an accepted picture after all: its file is gone and did not come again."""
        left = [one for one in self.entries if one is not entry]
        self.entries, self._accepted, self._places, self._looks = [], Counter(), {}, Looks()
        for one in left:
            self._add(one)
        self._reject(entry.source, entry.candidate, "connection", reason, entry.arrived)

    def why(self, source: int) -> str:
        """What became of a source's candidates that are not in the set."""
        kinds = self._kinds.get(source, Counter())
        return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda k: (-k[1], k[0])))

    def _add(self, entry: Entry) -> None:
        self._accepted[entry.source] += 1
        self._places[entry.arrived.file] = len(self.entries)
        self._looks.append(entry.arrived.look)
        self.entries.append(entry)

    def _copies_of(self, new: Entry) -> list[Entry]:
        """Those of the set with the same bytes or, unless somebody chose both and so wanted both, the same look."""
        alike = self._looks.same_as(new.arrived.look, self.limits.duplicate_bits)
        same = {place for place in alike if not (new.is_chosen and self.entries[place].is_chosen)}
        if new.arrived.file in self._places:
            same.add(self._places[new.arrived.file])
        return [self.entries[place] for place in sorted(same)]

    def _replaces(self, new: Entry, old: Entry) -> bool:
        """Whether a copy is the better one: chosen by somebody, else the reference, else the one with more pixels."""
        if new.is_chosen != old.is_chosen:
            return new.is_chosen
        is_reference, was = (
            bool(self.held_out) and lies_in({"name": one.candidate.label}, self.held_out) for one in (new, old)
        )
        if is_reference != was:
            return is_reference
        return new.arrived.look.pixels > old.arrived.look.pixels

    def _reject_copy(self, dropped: Entry, kept: Entry) -> None:
        if dropped.arrived.sha256 == kept.arrived.sha256:
            reason = f"the same bytes as {kept.candidate.label}"
        else:
            look = kept.arrived.look
            reason = (
                f"looks like {kept.candidate.label} ({look.width_px} x {look.height_px} px, "
                f"{_bits(dropped, kept)} of 128 bits differ)"
            )
        self._reject(dropped.source, dropped.candidate, "duplicate", reason, dropped.arrived, kept)

    def _reject(
        self,
        source: int,
        candidate: Candidate,
        kind: str,
        reason: str,
        result: Arrived | Refused,
        kept: Entry | None = None,
    ) -> None:
        self._kinds.setdefault(source, Counter())[reason if kind == "status" else kind] += 1
        facts = arrived_columns(result) if isinstance(result, Arrived) else {"sha256": result.sha256}
        if isinstance(result, Arrived):
            self.unused.append((candidate.without_content(), result.file))
        copy_of = {"copy_of": kept.id} if kept else {}
        self.rejected.append(
            {**candidate_columns(candidate), **facts, "verdict": "rejected", "kind": kind, "reason": reason, **copy_of}
        )


def _bits(one: Entry, other: Entry) -> int:
    return one.arrived.look.bits_from(other.arrived.look)


def _captioned(kept: Entry, dropped: Entry) -> Entry:
    """A picture with the caption that a file of the same bytes had, where it has none itself."""
    if kept.candidate.caption or kept.arrived.sha256 != dropped.arrived.sha256:
        return kept
    return replace(kept, candidate=replace(kept.candidate, caption=dropped.candidate.caption))


def candidate_columns(candidate: Candidate) -> dict[str, Any]:
    """What a source said."""
    return {
        "name": candidate.label, "engine": candidate.engine, "query": candidate.query, "rank": candidate.rank,
        "url": candidate.url, "page_url": candidate.page_url, "title": candidate.title,
        "licence": candidate.licence, "caption": candidate.caption, "revision": candidate.revision,
    }  # fmt: skip


def arrived_columns(arrived: Arrived) -> dict[str, Any]:
    """What the file is."""
    look = arrived.look
    return {
        "final_url": arrived.final_url, "sha256": arrived.sha256, "dhash": look.dhash, "format": look.format,
        "width_px": look.width_px, "height_px": look.height_px, "size_bytes": arrived.size_bytes,
    }  # fmt: skip


def manifest_row(entry: Entry) -> Row:
    """One accepted picture."""
    facts = {**candidate_columns(entry.candidate), **arrived_columns(entry.arrived), "verdict": "accepted"}
    return {"id": entry.id, "file": entry.arrived.file, **facts}
