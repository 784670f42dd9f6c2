"""The command line that every stage's script has: paths, one recipe, one record."""

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sdlora.errors import DataError, SdloraError
from sdlora.flow import freshness
from sdlora.flow.code import CODE_MEMORY, PACKAGE, Code

# What is wrong with the machine, not with the program.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
Work = Callable[[dict[str, Any], argparse.Namespace], Iterable[Path]]


def run(work: Work, **arguments: type) -> None:
    """Read the recipe, do the work, record what made its files.

    Args:
        work: Called with the recipe and the parsed arguments; returns the files it wrote.
        arguments: The stage's own options, name and type.
    """
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True, help="settings and code identity, JSON")
    parser.add_argument("--inputs", type=Path, nargs="*", default=[], help="records of the jobs before this one")
    parser.add_argument("--made", type=Path, required=True, help="the record to write when all is done")
    for name, kind in arguments.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, required=True)
    args = parser.parse_args()
    recipe = args.recipe.read_text("utf-8")
    try:
        asked = json.loads(recipe)
        check_code(asked, Path(sys.argv[0]))
        outputs = list(work(asked, args))
        freshness.write_made(args.made, recipe, args.inputs, outputs)
    except SdloraError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        sys.exit(
            f"error: {error.filename or args.made}: {error.strerror}; what was finished is kept, so mend that and "
            f"run the same command again"
        )


def run_code_of(source: str) -> None:
    """Have the scripts that this process starts import the code that the recipes hash, whatever is installed."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *([before] if before else [])])


def check_code(recipe: dict[str, Any], script: Path) -> None:
    """Nothing may be recorded under the hash of other code than ran.

    Raises:
        DataError: If this process has other code than the one that the recipe names.
    """
    if recipe["code"] is None:  # what came from the web is pinned, whatever the code
        return
    found = Code(CODE_MEMORY).reach(script, recipe.get("entries", ()))
    if found.identity != recipe["code"]:
        raise DataError(
            f"the code of {recipe['stage']} below {PACKAGE} is not the code that this run was planned with: "
            f"it was edited meanwhile, or it belongs to another checkout; run the same command again"
        )
