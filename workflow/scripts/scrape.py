"""Gather a dataset's pictures: `python workflow/scripts/scrape.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.scrape.pin import scrape

command.run(lambda recipe, args: scrape(recipe, args.out, bool(args.again)), out=Path, again=int)
