"""Gather a dataset's pictures: `python workflow/scripts/scrape.py --help`."""

from pathlib import Path

from sdlora import command
from sdlora.scrape.gather import gather, sources_of

command.run(lambda recipe, args: gather(sources_of(recipe), args.out), out=Path)
