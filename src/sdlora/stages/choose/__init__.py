"""Choose a checkpoint, and draw what reports on it."""
