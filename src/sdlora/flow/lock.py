"""One pipeline run at a time in a working directory; the kernel drops the lock when the process dies."""

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from sdlora.errors import DataError

# What Snakemake only shows: none of these runs a job or deletes a file.
_LOOKS = (
    "dryrun", "lint", "list_rules", "list_target_rules", "print_compilation", "dag", "rulegraph", "filegraph", "d3dag",
    "summary", "detailed_summary", "list_changes", "list_input_changes", "list_params_changes", "list_untracked",
    "unlock",
)  # fmt: skip
_held: IO[str] | None = None


def acquire(words: Sequence[str], path: Path = Path(".sdlora/run.lock")) -> bool:
    """Hold the lock until this process ends.

    Args:
        words: What Snakemake was called with.
        path: The lock's file.

    Returns:
        Whether it is held now; False if another live process has it and `words` ask only to look.

    Raises:
        DataError: If another run is active and `words` ask for work: what this run would find settled may belong to
            other settings, so that "nothing to be done" would be no answer. Or if the lock cannot be written.
    """
    global _held
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise DataError(
            f"{path.parent}: {error.strerror}; the pipeline keeps its records there: make the folder writable"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        if only_looks(words):
            return False
        raise DataError(
            "another run of the pipeline is active in this directory; wait for it or stop it (`snakemake -n` shows the "
            "plan as it was when that run began)"
        ) from None
    _held = handle
    return True


def only_looks(words: Sequence[str]) -> bool:
    """Whether a Snakemake command line shows something and changes nothing."""
    from snakemake.cli import get_argument_parser

    args, _ = get_argument_parser().parse_known_args([*words])
    return any(getattr(args, name, None) for name in _LOOKS) or args.report is not None
