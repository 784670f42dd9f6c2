"""How much memory a training asks a cluster for: the preflight's prediction, remembered by what it depends on.

The prediction imports torch, so it is a process of its own, and only where jobs go to other machines.
"""

import subprocess
import sys

from sdlora import records
from sdlora.flow.hashing import STORE, read_regular, sha256_text
from sdlora.stages.train.recipe import TrainRecipe

UNKNOWN_MIB = 24_000  # where nobody can tell


def training_mib(job: TrainRecipe) -> int:
    """RAM in MiB that a training asks for; `UNKNOWN_MIB`, and a line on stderr, where the preflight cannot tell."""
    version = job.wildcards["version"]
    kept = STORE / "asking" / f"{sha256_text(f'{job.digest()} {job.size_px}')}.json"
    found = read_regular(kept)
    if isinstance(found, int):
        return found
    words = [sys.executable, "-c", "from sdlora.cli import main; main()", "preflight", version, "--ram"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"note: version {version} asks for {UNKNOWN_MIB} MiB: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return UNKNOWN_MIB
    records.write_json(kept, int(done.stdout))
    return int(done.stdout)
