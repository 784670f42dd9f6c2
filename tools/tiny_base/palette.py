"""The colours of the world: what captions call them, and how far a colour of one name varies."""

import colorsys
import random
from functools import cache

import numpy as np
from numpy.typing import NDArray

COLOURS: dict[str, str] = {
    "black": "#151515", "gray": "#8a8f98", "white": "#f7f7f7", "red": "#d62b2b", "dark red": "#8c1c1c",
    "orange": "#f08a24", "yellow": "#f6d743", "green": "#3fa34d", "dark green": "#1f5c33", "mint": "#9be8c4",
    "teal": "#1d9c9c", "cyan": "#59c9e8", "blue": "#3567d6", "navy": "#1c2a5e", "light blue": "#b3d4f7",
    "purple": "#7a3fc0", "lavender": "#c3b1f2", "pink": "#f39ac0", "magenta": "#d63fa6", "brown": "#7a4a26",
    "dark brown": "#3f2415", "tan": "#d9a878", "peach": "#f8cdb0", "gold": "#d6a92b",
}  # fmt: skip
BACKGROUNDS = ("white", "gray", "light blue", "mint", "lavender", "peach", "yellow", "teal", "navy", "pink", "red")
#: Every colour that hair can have; skin's own colours are left out.
HAIR = tuple(name for name in COLOURS if name not in ("peach", "light blue"))
ACCESSORY = ("black", "white", "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "gray")


def rgb(colour: str) -> NDArray[np.float64]:
    """`#rrggbb` as three numbers from 0 to 255."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)


@cache
def colour_name(colour: str) -> str:
    """Name of the palette colour nearest to a hex value (weighted RGB distance)."""
    weights = np.array([0.30, 0.59, 0.35])
    value = rgb(colour)
    return min(COLOURS, key=lambda name: float((weights * (rgb(COLOURS[name]) - value) ** 2).sum()))


def varied(name: str, rng: random.Random) -> str:
    """A colour that a caption calls `name`, near the palette's: no two heads of red hair are of one red."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(rgb(COLOURS[name]) / 255))
    for _ in range(20):
        near = colorsys.hsv_to_rgb(
            (hue + rng.uniform(-0.02, 0.02)) % 1,
            min(1.0, saturation * rng.uniform(0.9, 1.1)),
            min(1.0, value * rng.uniform(0.92, 1.08)),
        )
        colour = "#" + "".join(f"{round(255 * part):02x}" for part in near)
        if colour_name(colour) == name:
            return colour
    return COLOURS[name]


def darker(colour: str, factor: float = 0.75) -> str:
    """The same colour in the shade."""
    return "#" + "".join(f"{round(part * factor):02x}" for part in rgb(colour))
