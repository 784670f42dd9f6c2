"""What a run finds out and no recipe says: kept beside its checkpoints, for the files that are made of them."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.lora.metadata import About
from sdlora.lora.names import ABOUT
from sdlora.stages.flip import kohya_set
from sdlora.stages.train.dataset import Example
from sdlora.stages.train.loop import Run

EXAMPLES = 3  # captions in the card's widget
MOST_TAGS = 2000  # of a folder, the commonest: captions without commas are one tag each


def write_about(folder: Path, run: Run, trigger: str) -> Path:
    """Write `about.json`: what the run's files tell and no recipe says."""
    naming, scale = run.model.naming(), run.model.pipeline.vae_scale_factor
    width, height = _size_px(run.examples[0], scale)
    about = About(
        trigger=trigger,
        pictures=len(run.examples),
        captions=tuple(dict.fromkeys(example.text[0] for example in run.examples))[:EXAMPLES],
        size_px=(width, height),
        prediction_type=run.objective.name,
        cross_attention_dim=naming.get("cross_attention_dim", 0),
        layers_per_block=naming.get("layers_per_block", 0),
        **_dataset(run.examples, trigger, scale),
    )
    records.write_json(folder / ABOUT, vars(about))
    return folder / ABOUT


def _size_px(example: Example, scale: int) -> tuple[int, int]:
    """Width and height of a fitted picture; `scale` pixels are one place of its latents."""
    if not example.mean:
        width, height = example.bucket
        return width // scale * scale, height // scale * scale
    height, width = example.mean[0].shape[-2:]
    return width * scale, height * scale


def _dataset(examples: Sequence[Example], trigger: str, scale: int) -> dict[str, Any]:
    """Tags, folders and sizes of the pictures, as kohya's trainer counts them: tags in lower case, once a caption."""
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    counts, buckets = Counter[int](), Counter[tuple[int, int]]()
    for example in examples:
        counts[example.repeats] += 1
        buckets[_size_px(example, scale)] += example.repeats
        own = (tag.strip().lower() for tag in example.text[0].split(","))
        tags[kohya_set.folder_name(example.repeats, trigger)].update(tag for tag in own if tag)
    folders = {
        kohya_set.folder_name(repeats, trigger): {"n_repeats": repeats, "img_count": count}
        for repeats, count in sorted(counts.items())
    }
    sizes = [(*size, count) for size, count in sorted(buckets.items())]
    return {
        "tags": {name: dict(tags[name].most_common(MOST_TAGS)) for name in folders},
        "folders": folders,
        "buckets": sizes,
    }
