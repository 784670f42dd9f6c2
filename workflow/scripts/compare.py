"""Compare two versions: the same door as `sdlora compare`."""

import sys

from sdlora.cli import main

main(["compare", *sys.argv[1:]])
