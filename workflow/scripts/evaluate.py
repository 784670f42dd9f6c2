"""Measure samples against references: `python workflow/scripts/evaluate.py --help`."""

from pathlib import Path

from sdlora import records
from sdlora.config.params import Evaluate
from sdlora.flow import command
from sdlora.stages.evaluate import evaluate_version

command.run(
    lambda recipe, args: evaluate_version(
        Evaluate.model_validate_json(records.canonical_json(recipe["evaluate"])),
        args.samples,
        args.references,
        args.out,
    ),
    samples=Path,
    references=Path,
    out=Path,
)
