"""How much memory jobs ask a cluster for: the preflight's prediction, remembered by what it depends on.

The prediction imports torch, so it is a process of its own, and only where jobs go to other machines.
"""

import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from sdlora import records
from sdlora.flow import folders
from sdlora.flow.code import PACKAGE
from sdlora.flow.hashing import PRIVATE, FileHashes, read_regular, sha256_text
from sdlora.stages.caption.recipe import CaptionRecipe
from sdlora.stages.encode.recipe import EncodeRecipe
from sdlora.stages.sample.recipe import DrawingRecipe
from sdlora.stages.train.recipe import TrainRecipe

UNKNOWN_MIB = 24_000  # of a training, where nobody can tell
UNKNOWN_ENCODING_MIB = 8_000
CAPTIONING_MIB = 6_000  # one picture, beside BLIP and the libraries
CAPTIONED_MIB = 55  # each picture and beam more: what BLIP's base keeps of them at 384 px, 47, and pixels
LEAST_DRAWING_MIB = 16_000  # the same of a drawing; also what the networks take that measure what is drawn


def training_mib(job: TrainRecipe) -> int:
    """RAM in MiB that a training asks for; `UNKNOWN_MIB`, and a line on stderr, where the preflight cannot tell."""
    captions = 0 if job.train.text_cache == "none" else captions_in(job.dataset)
    sides = sides_in(job.dataset) if job.train.mask == "user" or job.train.cache_latents == "ram" else 0
    asked = f"{job.digest()} {job.size_px} {captions} {sides}"
    found = _predicted(asked, job.wildcards["version"], "--ram", UNKNOWN_MIB)
    return UNKNOWN_MIB if found is None else found


def drawing_mib(job: DrawingRecipe) -> int:
    """RAM in MiB that a job asks for which draws: `LEAST_DRAWING_MIB`, or more where the preflight predicts more."""
    found = _predicted(drawing_asked(job), job.wildcards["version"], "--drawing-ram", LEAST_DRAWING_MIB)
    return max(LEAST_DRAWING_MIB, found or 0)


def encoding_mib(job: EncodeRecipe, version: str) -> int:
    """RAM in MiB that encoding asks for; `UNKNOWN_ENCODING_MIB`, and a line on stderr, where nobody can tell.

    Args:
        job: Encodes a set for a base.
        version: One that is trained on it.
    """
    asked = f"encoding {job.digest()} {job.wildcards['fit']}"
    found = _predicted(asked, version, "--encoding-ram", UNKNOWN_ENCODING_MIB)
    return UNKNOWN_ENCODING_MIB if found is None else found


def captioning_mib(job: CaptionRecipe) -> int:
    """RAM in MiB that captioning asks for: what the decoder keeps of a picture is by far the most of it."""
    return CAPTIONING_MIB + CAPTIONED_MIB * (job.caption.batch_size * job.caption.num_beams - 1)


def drawing_asked(job: DrawingRecipe) -> str:
    """All that the prediction of a drawing depends on, and a little more: jobs that say the same are predicted once."""
    return f"drawing {records.compact_json(job.drawing())}"


def captions_in(folder: Path) -> int:
    """Distinct captions of a fitted set; before it has some, the set's pictures, and before it has those, none.

    Args:
        folder: `data/sets/<dataset>/<fit>`.
    """
    return _counted(folder, "text")


def sides_in(folder: Path) -> int:
    """Pictures of a fitted set, mirrored ones too; before there are any, the set's pictures, and before those, none.

    Args:
        folder: `data/sets/<dataset>/<fit>`.
    """
    return _counted(folder, "id", "mirrored")


def _counted(folder: Path, *names: str) -> int:
    """What rows of the set that is trained on have, or else its pictures."""
    for path, counted in ((folder / "train/metadata.jsonl", names), (folder.parent / "manifest.jsonl", ("id",))):
        with suppress(FileNotFoundError):
            return _distinct(path, counted, path.stat().st_mtime_ns)
    return 0


@cache
def _distinct(path: Path, names: tuple[str, ...], _: int) -> int:
    """How many values rows have of these, but for those of references."""
    rows = records.read_jsonl(path)
    return len({tuple(row[name] for name in names) for row in rows if row.get("split") != "reference"})


def kept(asked: str) -> Path:
    """The file that remembers a prediction, as long as it is predicted in the same way."""
    return PRIVATE / "asking" / f"{sha256_text(f'{_predicting()} {asked}')}.json"


@cache
def _predicting() -> str:
    """What predicts: no stage's identity has it, for no result depends on it."""
    return folders.identity(PACKAGE / "memory", FileHashes(), (".py",))


@cache
def _predicted(asked: str, version: str, option: str, otherwise: int) -> int | None:
    """What `sdlora preflight` prints; None, and a line on stderr, if it cannot, which the next run asks again."""
    known = read_regular(kept(asked))
    if isinstance(known, int):
        return known
    words = [sys.executable, "-c", "from sdlora.cli import main; main()", "preflight", version, option]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"note: version {version} asks for {otherwise} MiB: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    records.write_json(kept(asked), int(done.stdout))
    return int(done.stdout)
