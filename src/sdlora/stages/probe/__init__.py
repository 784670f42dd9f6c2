"""Train a search's trial up to a checkpoint, and measure it there."""
