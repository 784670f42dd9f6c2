"""Fit a dataset's pictures to a square: `python workflow/scripts/fit.py --help`."""

from pathlib import Path

from sdlora import command
from sdlora.fit import fit_dataset
from sdlora.params import Fit

command.run(
    lambda recipe, args: fit_dataset(Fit(**recipe["fit"]), args.source, args.out),
    source=Path,
    out=Path,
)
