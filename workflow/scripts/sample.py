"""Draw every reference's prompt at every checkpoint: `python workflow/scripts/sample.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.sample.sample import sample_version

command.run(
    lambda recipe, args: sample_version(recipe, args.checkpoints, args.captions, args.out),
    checkpoints=Path,
    captions=Path,
    out=Path,
)
