"""Snakemake's own scheduler, and how often it looks."""

import threading
import time

import pytest
from snakemake.scheduling.job_scheduler import JobScheduler

from sdlora.flow import looking


def looks(scheduler: JobScheduler, asked: int, delay: float = 0.05) -> int:
    """How many looks come of asking so often at once."""
    for _ in range(asked):
        scheduler._schedule_reevalutation(delay)
    time.sleep(delay + 0.2)
    found = 0
    while scheduler._open_jobs.acquire(blocking=False):
        found += 1
    return found


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> JobScheduler:
    """One that has nothing to run; what is mended is mended for this test."""
    monkeypatch.setattr(JobScheduler, looking._AGAIN, getattr(JobScheduler, looking._AGAIN))
    found: JobScheduler = JobScheduler.__new__(JobScheduler)
    found._open_jobs = threading.Semaphore(0)
    return found


def test_snakemake_looks_once_for_each_time_it_is_asked(scheduler: JobScheduler) -> None:
    """Where this fails, Snakemake needs no mending any more."""
    assert looks(scheduler, 5) == 5


def test_it_looks_once_and_again_when_it_has_looked(scheduler: JobScheduler) -> None:
    looking.less()
    assert [looks(scheduler, 5), looks(scheduler, 1)] == [1, 1]


def test_a_look_of_another_delay_is_another(scheduler: JobScheduler) -> None:
    looking.less()
    scheduler._schedule_reevalutation(60)
    assert looks(scheduler, 3) == 1
    (waiting,) = [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
    assert waiting.daemon, "nobody waits a minute for it when all is done"
    waiting.cancel()
