"""Compare two measured versions: `python workflow/scripts/compare.py --help`."""

import argparse
import sys
from pathlib import Path

from sdlora.errors import SdloraError
from sdlora.stages.evaluate.compare import compare

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("one", type=Path, help="results/<version>")
parser.add_argument("other", type=Path, help="results/<version>")
parser.add_argument("--bootstrap-samples", type=int, default=2000)
parser.add_argument("--out", type=Path, required=True)
args = parser.parse_args()
try:
    compare(args.one, args.other, args.bootstrap_samples, args.out)
except SdloraError as error:
    sys.exit(f"error: {error}")
print(args.out.read_text("utf-8"), end="")
