"""Fit a dataset's pictures to a square or to buckets: `python workflow/scripts/fit.py --help`."""

from pathlib import Path

from sdlora import command, records
from sdlora.fit import fit_dataset
from sdlora.params import Fit

command.run(
    lambda recipe, args: fit_dataset(
        Fit(**recipe["fit"]),
        args.source,
        args.out,
        recipe["masks"],
        records.canonical_json([recipe["code"], recipe["software"]]),
    ),
    source=Path,
    out=Path,
)
