"""One pipeline run at a time in a working directory; the kernel drops the lock when the process dies."""

import fcntl
import sys
from pathlib import Path
from typing import IO

_held: IO[str] | None = None


def acquire(path: Path = Path(".sdlora/run.lock")) -> bool:
    """Hold the lock until this process ends.

    Returns:
        Whether it is held now; False if another live process has it.
    """
    global _held
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return False
    _held = handle
    return True


def leave_unless_held() -> None:
    """End this process if another one holds the lock: called before any job starts."""
    if _held is None:
        sys.exit("another run of the pipeline is active in this directory; wait for it or stop it")
