"""What the numbers in docs/performance.md are measured with."""
