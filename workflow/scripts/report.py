"""Write a version's page, or the page over all: `python workflow/scripts/report.py --help`."""

import argparse
from pathlib import Path
from typing import Any

from sdlora.flow import command
from sdlora.stages.report import write_index, write_version


def work(recipe: dict[str, Any], args: argparse.Namespace) -> list[Path]:
    out = args.made.parent.parent
    if "versions" in recipe:
        return write_index(recipe["versions"], args.result, out)
    return write_version(recipe["version"], recipe["settings"], args.result, args.references, out / "report")


command.run(work, references=Path, result=Path)
