"""What the numbers in docs/benchmarks.md are measured with."""
