"""Write both orientations of the training pictures: `python workflow/scripts/flip.py --help`."""

from pathlib import Path

from sdlora.flow import command
from sdlora.stages.flip.flip import flip_dataset

command.run(
    lambda recipe, args: flip_dataset(
        args.folder, recipe["mirror"], recipe["swap_words"], recipe["repeats"], recipe["kohya"]
    ),
    folder=Path,
)
