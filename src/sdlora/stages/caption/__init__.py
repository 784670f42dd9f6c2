"""Describe pictures in words."""
