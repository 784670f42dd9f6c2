"""Fit a dataset's pictures to a square or to buckets: `python workflow/scripts/fit.py --help`."""

from pathlib import Path

from sdlora import records
from sdlora.config.params import Fit
from sdlora.flow import command
from sdlora.stages.fit.fit import fit_dataset

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
