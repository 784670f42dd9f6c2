"""How often Snakemake's scheduler looks at what can run.

Snakemake 9.27 has itself look again a second after each look, and looks for each job that ends: after N jobs it looks N
times a second, each time at every job that waits. On two cores 80 jobs took a fifth of one, and each run ended up to a
second late, for the last timer.
"""

import threading
from typing import Any

from snakemake.scheduling.job_scheduler import JobScheduler

_AGAIN = "_schedule_reevalutation"  # as it is spelt there


def less() -> None:
    """Have at most one look of each delay pending, which holds nobody up at the end; leave other Snakemakes alone."""
    if hasattr(JobScheduler, _AGAIN):
        setattr(JobScheduler, _AGAIN, _look_again)


def _look_again(scheduler: Any, delay: float) -> None:
    """Look once more after some seconds, unless a look after as many is pending."""
    pending: set[float] = scheduler.__dict__.setdefault("_pending", set())
    if delay in pending:
        return
    pending.add(delay)

    def look() -> None:
        pending.discard(delay)  # before the look, which may ask for another
        scheduler._open_jobs.release()

    timer = threading.Timer(delay, look)
    timer.daemon = True
    timer.start()
