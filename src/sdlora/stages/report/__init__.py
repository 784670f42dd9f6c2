"""The pages people look at."""

from sdlora.stages.report.page import write_index, write_version

__all__ = ["write_index", "write_version"]
