"""What the numbers in docs/benchmarks.md are measured with."""

import sdlora  # noqa: F401 - before diffusers, which asks once, when it is imported, whether bitsandbytes is there
