"""Gather a dataset's pictures: `python workflow/scripts/scrape.py --help`."""

from sdlora.flow import command
from sdlora.stages.scrape.pin import scrape
from sdlora.stages.scrape.recipe import ScrapeRecipe

command.run(ScrapeRecipe, lambda recipe, again: scrape(recipe, bool(again)), again=int)
