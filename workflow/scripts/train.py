"""Train one version's LoRA: `python workflow/scripts/train.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.train import train_version

command.run(
    lambda recipe, args: train_version(recipe, args.inputs, args.folder, args.base, args.out, args.keep_runs),
    folder=Path,
    base=str,
    out=Path,
    keep_runs=int,
)
