"""The embedded base: a small world of avatars and the tiny models trained on it."""
