"""What the stage `scrape` is asked to do."""

from typing import Any, ClassVar

from sdlora.config.dataset import Dataset
from sdlora.flow.recipe import Recipe, Values

#: What of a dataset decides which pictures it has; all else belongs to later stages.
ASKED = frozenset({"sources", "scrape", "minimum", "held_out"})


class ScrapeRecipe(Recipe):
    """Gather a dataset's pictures. The pictures themselves, `raw/`, are no output that Snakemake may delete."""

    stage: ClassVar[str] = "scrape"
    folder_pattern: ClassVar[str] = "data/sets/{dataset}"
    writes: ClassVar[tuple[str, ...]] = ("manifest.jsonl",)

    dataset: Dataset
    files: dict[str, str]  # identity of each source on this machine; what comes from the web is pinned instead

    def identity(self) -> Values:
        """Without what of the dataset later stages read."""
        values = super().identity()
        dataset: dict[str, Any] = values["dataset"]
        return {**values, "dataset": {name: dataset[name] for name in sorted(ASKED)}}
