"""Gather pictures: any source, one manifest, every rejection with its reason."""

from sdlora.stages.scrape.gather import gather

__all__ = ["gather"]
