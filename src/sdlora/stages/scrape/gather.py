"""Candidates in, accepted pictures and a manifest out.

Pictures are fetched by many threads, but judged in the order in which their sources gave them: who answers first
decides nothing. Whatever has arrived is in `raw/` and in the journal at once, so that a run that was killed goes on.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any
from uuid import uuid4

from sdlora import choices, records
from sdlora.config.dataset import Dataset
from sdlora.errors import DataError, SdloraError, printable
from sdlora.progress import Progress
from sdlora.stages.scrape.connect import MAX_REASON, FetchError
from sdlora.stages.scrape.fetch import Fetched, Fetcher, PartFile
from sdlora.stages.scrape.journal import Journal, is_intact
from sdlora.stages.scrape.judge import Arrived, Judge, Refused, manifest_row
from sdlora.stages.scrape.source import Candidate, ScrapeContext
from sdlora.stages.scrape.split import group_of, lies_in, mark_copies, split
from sdlora.stages.scrape.verify import Look, examine

Result = Arrived | Refused
SAID = 5  # damaged pictures of a source
SPARE = 4  # pictures fetched beyond those still wanted, for the ones that will be rejected


def gather(
    dataset: Dataset, out: Path, context: ScrapeContext | None = None, spared: Collection[str] = ()
) -> list[Path]:
    """Write `raw/<sha256>.<ext>`, `manifest.jsonl`, `rejected.jsonl` and, if anything was fetched, `journal.jsonl`.

    Args:
        dataset: Its sources, limits, the minimum and what is held out.
        out: The dataset's folder.
        context: How the outside is reached; only tests give one. Its limits are replaced by the dataset's.
        spared: Files in `raw/` that stay there, whatever becomes of their pictures: another scrape's, until this one
            is finished.

    Returns:
        The files that later stages read: their content identifies the dataset. Neither the rejected candidates
        nor the times of the fetches do.

    Raises:
        DataError: If fewer training pictures than the minimum were accepted.
    """
    context = replace(context or ScrapeContext(), limits=dataset.scrape)
    raw = out / "raw"
    clear(raw, "*.part")
    journal = Journal(out, context.limits)
    judge = Judge(context.limits, dataset.held_out if isinstance(dataset.held_out, str) else "")
    with closing(_Workshop(raw, journal, context, spared)) as workshop:
        for number, source in enumerate(dataset.sources):
            _take_source(number, source, workshop, judge, context)
        _bring_back(judge, workshop, raw)
    accepted = _accepted(judge, dataset)
    records.write_jsonl(out / "rejected.jsonl", judge.rejected)
    # said before references are chosen: where pictures were rejected, that is why too few are left
    left = [row for row in accepted if not isinstance(dataset.held_out, str) or not lies_in(row, dataset.held_out)]
    _check_minimum(dataset, len(left) if judge.rejected else len(accepted), judge, out)
    rows, left_out = split(accepted, dataset.held_out, out)
    records.write_jsonl(out / "rejected.jsonl", [*judge.rejected, *_left_out(left_out, rows)])
    _check_minimum(dataset, sum(row["split"] == "train" for row in rows), judge, out)
    files = {row["file"] for row in rows}
    clear(raw, "*", keep={*files, *spared})
    records.write_jsonl(out / "manifest.jsonl", rows)
    journal.finish()
    training, (_, rejected, duplicates) = sum(row["split"] == "train" for row in rows), judge.counts()
    print(
        f"scrape: {training} to learn from, {len(rows) - training} references, "
        f"{rejected} rejected, {duplicates} duplicates"
        + (f", {len(left_out)} left out as copies of references" if left_out else ""),
        flush=True,
    )
    return [out / "manifest.jsonl", *(raw / file for file in sorted(files))]


def _accepted(judge: Judge, dataset: Dataset) -> list[records.Row]:
    """The set's pictures by id, copies marked where references are chosen among them."""
    rows = sorted(map(manifest_row, judge.entries), key=lambda row: str(row["id"]))
    if isinstance(dataset.held_out, str):
        return rows
    looks = {entry.arrived.sha256[:16]: entry.arrived.look for entry in judge.entries}
    return mark_copies(rows, looks, judge.limits.duplicate_bits)


def _left_out(rows: Sequence[records.Row], kept: Sequence[records.Row]) -> list[records.Row]:
    """The rows of what is a copy of a reference, each with which."""
    references = {group_of(row): row["id"] for row in reversed(kept) if row["split"] == "reference"}
    about = {
        "verdict": "rejected",
        "kind": "copy of a reference",
        "reason": "a copy of a reference: a picture that is learnt from cannot measure",
    }
    return [{**row, **about, "copy_of": references[group_of(row)]} for row in rows]


def _take_source(number: int, source: Any, workshop: "_Workshop", judge: Judge, context: ScrapeContext) -> None:
    """Judge a source's candidates until its limit of accepted pictures is reached."""
    limit: int | None = getattr(source, "limit", None)
    name = f"{source.kind} {query!r}" if (query := getattr(source, "query", None)) else source.kind
    progress = Progress(f"scrape {name}", limit) if limit else None
    damaged: list[str] = []  # of a folder or dataset: nobody reads `rejected.jsonl` who expects nothing there

    def wanted() -> int:
        window = 2 * context.limits.concurrency
        return window if limit is None else min(window, limit - judge.accepted_of(number) + SPARE)

    with closing(choices.pick(choices.SOURCES, source.kind)(source, context)) as candidates:
        for candidate, result in workshop.in_order(candidates, wanted):
            judge.take(number, candidate, result)
            if limit is None and isinstance(result, Refused) and candidate.problem is None:
                damaged.append(result.reason)
            for rejected_candidate, file in judge.take_unused():
                workshop.drop(rejected_candidate, file)
            accepted, rejected, duplicates = judge.counts()
            if progress:
                note = f"accepted {accepted}, rejected {rejected}, duplicates {duplicates}"
                progress.update(judge.accepted_of(number), note)
            if limit is not None and judge.accepted_of(number) >= limit:
                return
    for reason in damaged[:SAID]:
        print(printable(f"scrape: {name}: left out: {reason}"), flush=True)
    if len(damaged) > SAID:
        print(f"scrape: {name}: {len(damaged) - SAID} more left out; rejected.jsonl says why", flush=True)
    if limit is not None:
        had = f"{judge.seen[number]} candidates{': ' + why if (why := judge.why(number)) else ''}"
        print(f"scrape: {name}: {judge.accepted_of(number)} of the {limit} pictures wanted; {had}", flush=True)


def _bring_back(judge: Judge, workshop: "_Workshop", raw: Path) -> None:
    """Fetch what was rejected, deleted and wanted after all: the search had another order when a run went on."""
    for entry in [one for one in judge.entries if not (raw / one.arrived.file).is_file()]:
        result = workshop.again(entry.candidate.url) if entry.candidate.url is not None else None
        if not isinstance(result, Arrived) or result.sha256 != entry.arrived.sha256:
            judge.lose(entry, "it was deleted as not wanted, and did not come again")


class _Workshop:
    """Turns candidates into files in `raw/`, many at once."""

    def __init__(self, raw: Path, journal: Journal, context: ScrapeContext, spared: Collection[str]) -> None:
        self._raw, self._journal, self._limits = raw, journal, context.limits
        self._fetcher = Fetcher(context, raw)
        # More threads than places in the gate: one that waits for its turn at a slow host holds up no other.
        self._pool = ThreadPoolExecutor(2 * context.limits.concurrency, thread_name_prefix="scrape")
        self._in_memory = BoundedSemaphore(4)  # whole files
        self._spared = {*spared}  # and what brought its bytes: they are not kept in memory, and do not come again
        self._sparing = Lock()
        self._by_url: dict[str, Future[Result]] = {}  # found twice, fetched once

    def close(self) -> None:
        """Stop what is under way; nothing of it is wanted any more."""
        self._fetcher.stop()
        self._pool.shutdown(cancel_futures=True)

    def in_order(
        self, candidates: Iterator[Candidate], wanted: Callable[[], int]
    ) -> Iterator[tuple[Candidate, Result]]:
        """Each candidate with its result, in their own order.

        Args:
            candidates: Taken only as far ahead as wanted.
            wanted: How many may be under way now.
        """
        waiting: deque[tuple[Candidate, Future[Result]]] = deque()
        try:
            for candidate in candidates:
                waiting.append((candidate, self._begin(candidate)))
                while waiting and (len(waiting) >= wanted() or waiting[0][1].done()):
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

    def _begin(self, candidate: Candidate) -> "Future[Result]":
        if candidate.url is None:
            return self._pool.submit(self._read, candidate)
        known = self._by_url.get(candidate.url)
        if known is None or known.cancelled():
            known = self._by_url[candidate.url] = self._pool.submit(self._guarded, self._fetch, candidate.url)
        return known

    def drop(self, candidate: Candidate, file: str) -> None:
        """Delete the file of a picture that was rejected: there may be thousands of them."""
        with self._sparing:
            if file in self._spared:
                return
            if candidate.url is not None:
                self._journal.note_dropped(candidate.url)
            (self._raw / file).unlink(missing_ok=True)

    def again(self, url: str) -> Result:
        """A picture once more, whatever is known of it."""
        return self._guarded(self._fetch_anew, url)

    def _guarded(self, work: Callable[[str], Result], url: str) -> Result:
        """Whatever goes wrong with one picture is that picture's rejection; a full disk is everybody's error."""
        try:
            return work(url)
        except SdloraError:
            raise
        except Exception as error:
            reason = printable(f"{type(error).__name__}: {error}"[:MAX_REASON])
            return self._refuse(url, Refused("unforeseen", reason))

    def _read(self, candidate: Candidate) -> Result:
        """A candidate that brought its bytes."""
        content = candidate.content or b""
        digest = hashlib.sha256(content).hexdigest()
        if candidate.problem is not None:
            return Refused("content", candidate.problem, digest if content else None)
        try:
            look = examine(content, candidate.label, None)
        except DataError as error:
            return Refused("content", str(error), digest)
        arrived = Arrived(digest, len(content), look)
        part = self._raw / f"{uuid4().hex}.part"  # two candidates may have the same bytes at the same time
        with closing(PartFile(part)) as handle:
            handle.write(content)
        with self._sparing:
            self._spared.add(arrived.file)
            part.replace(self._raw / arrived.file)
        return arrived

    def _fetch(self, url: str) -> Result:
        """A candidate that has to be fetched, unless an interrupted run has done so."""
        known = self._journal.known(url)
        if known and known["verdict"] == "refused":
            return Refused(known["kind"], known["reason"], known["sha256"])
        if known:
            arrived = Arrived(known["sha256"], known["size_bytes"], Look(**known["look"]), known["final_url"])
            if known.get("dropped") or is_intact(self._raw / arrived.file, arrived.sha256):
                return arrived
        return self._fetch_anew(url)

    def _fetch_anew(self, url: str) -> Result:
        try:
            fetched = self._fetcher.fetch(url)
        except FetchError as error:
            if self._fetcher.is_stopped:  # nobody waits for this verdict, and it says nothing about the picture
                return Refused("stopped", str(error))
            again = error.transient or error.kind == "time"
            return self._refuse(url, Refused(error.kind, str(error)), again=again)
        return self._keep(url, fetched)

    def _keep(self, url: str, fetched: Fetched) -> Result:
        try:
            with self._in_memory:
                look = examine(fetched.part.read_bytes(), "the file", self._limits)
        except DataError as error:
            fetched.part.unlink()
            reason = str(error).removeprefix("the file: ")
            return self._refuse(url, Refused("content", reason, fetched.sha256))
        arrived = Arrived(fetched.sha256, fetched.size_bytes, look, fetched.final_url)
        fetched.part.replace(self._raw / arrived.file)
        facts = {"sha256": arrived.sha256, "size_bytes": arrived.size_bytes, "look": vars(look)}
        self._journal.add(url, verdict="arrived", **facts, final_url=fetched.final_url)
        return arrived

    def _refuse(self, url: str, refused: Refused, **facts: Any) -> Refused:
        self._journal.add(url, verdict="refused", **vars(refused), **facts)
        return refused


def _check_minimum(dataset: Dataset, training: int, judge: Judge, out: Path) -> None:
    if training < dataset.minimum:
        reasons = "; ".join(row["reason"] for row in judge.rejected[:3]) or "none was rejected"
        raise DataError(
            f"{out}: {training} usable training pictures, but the dataset's minimum is {dataset.minimum} "
            f"({len(judge.rejected)} rejected: {reasons})"
        )


def clear(folder: Path, pattern: str, keep: Collection[str] = ()) -> None:
    """Delete the files of a folder that match a pattern and are not kept."""
    for path in folder.glob(pattern):
        if path.name not in keep:
            path.unlink()
