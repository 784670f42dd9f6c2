"""Captions in batches: how fast they are, and how many differ from those of pictures alone.

    python -m benchmarks.captions --pictures 1000 --batches 1,8,16,32,64

Pictures of the world that the embedded base learns, which it has not seen, captioned by its own BLIP on one thread. The
first size is what the others are held against.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tools.tiny_base import world

from sdlora.config.caption import Caption
from sdlora.stages.caption.blip import Blip

BLIP = Path(__file__).parents[1] / "models/tiny-blip"
SEED = 991  # of pictures that nothing was trained on


def pictures_of(count: int) -> list[Image.Image]:
    """So many pictures of the drawn world, 64 px."""
    return [world.draw(world.sample(number, SEED)) for number in range(count)]


def captioned(pictures: Sequence[Image.Image], settings: Caption) -> tuple[list[str], float]:
    """Their captions, in batches, and the seconds of computing after the model was loaded."""
    blip, size = Blip(str(BLIP), None, settings, threads=1), settings.batch_size
    blip.captions(pictures[:size])
    began = time.process_time()
    texts = [text for first in range(0, len(pictures), size) for text in blip.captions(pictures[first : first + size])]
    return texts, time.process_time() - began


def compare(count: int, batches: Sequence[int], num_beams: int) -> list[str]:
    """A line a batch size."""
    pictures, lines = pictures_of(count), []
    expected: list[str] = []
    for size in batches:
        texts, seconds = captioned(pictures, Caption(batch_size=size, num_beams=num_beams))
        expected = expected or texts
        others = sum(text != first for text, first in zip(texts, expected, strict=True))
        lines.append(
            f"batch_size {size}: {count / seconds:.1f} pictures per CPU second, {others} of {count} captions differ"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Caption the same pictures in batches of several sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--batches", default="1,8,16,32,64", help="sizes, comma between")
    parser.add_argument("--num-beams", type=int, default=1)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    compare(args.pictures, [int(size) for size in args.batches.split(",")], args.num_beams)


if __name__ == "__main__":
    main()
