"""Measure samples against held-out references, and choose the best checkpoint."""

from sdlora.stages.evaluate.run import evaluate_version

__all__ = ["evaluate_version"]
