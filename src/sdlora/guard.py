"""One pipeline run at a time in a working directory; the kernel drops the lock when the process dies."""

import fcntl
import sys
from pathlib import Path
from typing import IO

_held: IO[str] | None = None


def acquire(path: Path = Path(".sdlora/run.lock")) -> None:
    """Hold the lock until this process ends, or say who else holds it and leave."""
    global _held
    path.parent.mkdir(parents=True, exist_ok=True)
    _held = path.open("w")
    try:
        fcntl.flock(_held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("another run of the pipeline is active in this directory; wait for it or stop it")
