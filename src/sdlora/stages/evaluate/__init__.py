"""Measure samples against held-out references, and choose the best checkpoint."""
