"""The command line that every stage's script has: paths, one recipe, one record."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sdlora import provenance
from sdlora.errors import SdloraError

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
        outputs = list(work(json.loads(recipe), args))
    except SdloraError as error:
        sys.exit(f"error: {error}")
    provenance.write_made(args.made, recipe, args.inputs, outputs)
