"""The peak of memory predicted, and what would make it fit."""
