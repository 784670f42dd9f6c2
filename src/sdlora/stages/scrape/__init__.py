"""Gather pictures: any source, one manifest, every rejection with its reason."""
