"""Gather pictures: any source, one manifest, every rejection with its reason."""

from sdlora.scrape.gather import gather

__all__ = ["gather"]
