"""Benchmarks that users run: `make bench`."""
