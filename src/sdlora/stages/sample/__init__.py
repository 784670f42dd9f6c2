"""Draw pictures at every checkpoint."""
