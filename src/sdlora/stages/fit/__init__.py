"""Fit pictures to a square or to buckets, by padding."""
