"""`cd tests && python -m hostile [group ...]`: every attack, and how many got through."""

import os
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path

from hostile import ATTACKS

GROUPS = ("hub", "shared", "decode", "network", "browser")


def main(*groups: str) -> int:
    """Run the attacks of these groups; the number that got through."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for group in groups or GROUPS:
        import_module(f"hostile.{group}")
    tried: Counter[str] = Counter()
    through: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        chosen = [attack for attack in ATTACKS if attack.group in (groups or GROUPS)]
        for number, attack in enumerate(chosen):
            began = time.monotonic()
            found = attack.run(Path(scratch) / str(number))
            tried[attack.group] += 1
            through[attack.group] += found is not None
            verdict = f"GOT THROUGH: {found}" if found else "held"
            print(f"{attack.group}: {attack.name}: {verdict} ({time.monotonic() - began:.1f} s)", flush=True)
    for group, count in tried.items():
        print(f"{group}: {count} attacks, {through[group]} got through")
    print(f"all: {tried.total()} attacks, {through.total()} got through")
    return through.total()


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
