"""The world the embedded base lives in: avatars whose captions are their attributes.

`draw` renders any avatar, `describe` says what it shows, so the truth for any caption can be
drawn. Styles come from the package `dicebear-styles`; only open licences are used (see `STYLES`).
"""

import hashlib
import io
import json
import random
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import resvg_py
from dicebear import Avatar, Style
from numpy.typing import NDArray
from PIL import Image

# Styles that stay legible at 64 px: finer drawn ones (micah, big-smile, voxel-art) were tried and left out.
# Style -> (what a prompt calls it, licence, its speaking parts in caption order). A part is
# (option that names the variant, option that names the colour or None, noun).
Part = tuple[str | None, str | None, str]
STYLES: dict[str, tuple[str, str, tuple[Part, ...]]] = {
    "toon-head": (
        "toon head",
        "CC BY 4.0",
        (
            ("hair", "hairColor", "hair"),
            ("rearHair", None, "rear hair"),
            ("beard", None, "beard"),
            ("clothes", "clothesColor", ""),
            (None, "skinColor", "skin"),
            ("eyes", None, "eyes"),
            ("eyebrows", None, "eyebrows"),
            ("mouth", None, "mouth"),
        ),
    ),
    "personas": (
        "persona bust",
        "CC BY 4.0",
        (
            ("hair", "hairColor", "hair"),
            ("facialHair", None, "beard"),
            ("clothes", "clothingColor", "top"),
            (None, "skinColor", "skin"),
            ("eyes", None, "eyes"),
            ("mouth", None, "mouth"),
        ),
    ),
    "miniavs": (
        "mini avatar",
        "CC BY 4.0",
        (
            ("hair", "hairColor", "hair"),
            ("mustache", None, "mustache"),
            ("body", "bodyColor", ""),
            (None, "skinColor", "skin"),
            ("glasses", None, "glasses"),
            ("eyes", None, "eyes"),
            ("mouth", None, "mouth"),
        ),
    ),
    "critters": (
        "critter",
        "CC0 1.0",
        (
            ("body", "bodyColor", "body"),
            ("top", "accentColor", "top"),
            ("eyes", None, "eyes"),
            ("mouth", None, "mouth"),
        ),
    ),
    "dylan": (
        "dylan face",
        "CC BY 4.0",
        (
            ("hair", "hairColor", "hair"),
            (None, "skinColor", "skin"),
            ("facialHair", None, "beard"),
            ("mood", None, "mood"),
        ),
    ),
}
#: Held out entirely: the style that the style LoRA learns. Its variants have no speaking names.
HELD_OUT_STYLE = "pixel-art"
HELD_OUT_PARTS: tuple[Part, ...] = (
    ("hair", "hairColor", "hair"),
    ("beard", None, "beard"),
    ("clothes", "clothingColor", "clothes"),
    (None, "skinColor", "skin"),
    ("glasses", None, "glasses"),
    ("hat", "hatColor", "hat"),
)

COLOURS: dict[str, str] = {
    "black": "#151515", "gray": "#8a8f98", "white": "#f7f7f7", "red": "#d62b2b", "dark red": "#8c1c1c",
    "orange": "#f08a24", "yellow": "#f6d743", "cream": "#f4e6c0", "green": "#3fa34d", "dark green": "#1f5c33",
    "mint": "#9be8c4", "teal": "#1d8f8f", "cyan": "#59c9e8", "blue": "#3567d6", "navy": "#1c2a5e",
    "light blue": "#b3d4f7", "purple": "#7a3fc0", "lavender": "#c3b1f2", "pink": "#f39ac0",
    "light pink": "#fbd3dc", "magenta": "#d63fa6", "brown": "#7a4a26", "dark brown": "#3f2415", "tan": "#d9a878",
    "peach": "#f8cdb0", "gold": "#d6a92b",
}  # fmt: skip
BACKGROUNDS = ("white", "gray", "light blue", "mint", "lavender", "peach", "yellow", "teal", "navy", "pink", "red")

# Framings: the words a prompt uses (none for the plain one), size and place as shares of the canvas.
FRAMINGS: dict[str, tuple[float, float]] = {
    "": (0.92, 0.5),
    "close-up": (1.12, 0.5),
    "small, on the left": (0.67, 0.0),
    "small, on the right": (0.67, 1.0),
}
#: Held out: no picture that the base learns from has hair of this colour.
CAPTAINS_HAIR = "teal"
#: Height of an avatar in a picture that is not square: padded to a square, it is about as small as the small framings.
WIDE_SHARE = 0.9


@dataclass(frozen=True)
class Picture:
    """One avatar to draw: a style, resolved options and where it stands on its background."""

    style: str
    options: dict[str, Any]
    background: str
    framing: str
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)  # scale, x, y, each as a share of the canvas
    extra_svg: str = field(default="", repr=False)  # drawn over the avatar, in the style's own units

    @property
    def caption(self) -> str:
        return ", ".join(part for part in (describe(self), f"{self.background} background", self.framing) if part)


@cache
def _definition(name: str) -> dict[str, Any]:
    definition: dict[str, Any] = json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8"))
    return definition


def attribution(style: str) -> str:
    """Who drew a style and under which licence, in the words its package gives."""
    return str(_definition(style)["meta"]["license"]["text"])


@cache
def _style(name: str) -> Style:
    return Style(_definition(name))


def _rgb(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)


@cache
def colour_name(colour: str) -> str:
    """Name of the palette colour nearest to a hex value (weighted RGB distance)."""
    weights = np.array([0.30, 0.59, 0.35])
    rgb = _rgb(colour)
    return min(COLOURS, key=lambda name: float((weights * (_rgb(COLOURS[name]) - rgb) ** 2).sum()))


def words(variant: str) -> str:
    """A variant's name as a person would type it: 'sideComed' -> 'side comed'."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", variant)
    return re.sub(r"\s*\d+$", "", spaced).lower()


def describe(picture: Picture) -> str:
    """The attributes of an avatar, in caption order, without background and framing."""
    spoken = picture.style in STYLES
    name, _, parts = STYLES[picture.style] if spoken else ("pixel art avatar", "", HELD_OUT_PARTS)
    said = [name]
    for variant_key, colour_key, noun in parts:
        variant = picture.options.get(f"{variant_key}Variant") if variant_key else None
        if variant_key and not variant:
            continue
        colours = picture.options.get(colour_key) if colour_key else None
        colour = colour_name(colours[0]) if colours else ""
        label = words(str(variant)) if variant and spoken else ""
        if label == noun or label.endswith(f" {noun}"):
            label = label[: -len(noun)].strip()
        said.append(" ".join(word for word in (colour, label, noun) if word))
    return ", ".join(said)


def resolve(style: str, seed: str, **fixed: Any) -> dict[str, Any]:
    """The options DiceBear chooses for a seed, with some of them fixed."""
    options: dict[str, Any] = Avatar(_style(style), {"seed": seed, **fixed}).to_json()["options"]
    return {key: value for key, value in options.items() if key.endswith(("Variant", "Color"))}


def _svg(picture: Picture, size_px: int) -> str:
    fixed: dict[str, Any] = {"seed": "fixed", "size": size_px}
    for key, value in picture.options.items():
        if key == "backgroundColor" or key.startswith("animation"):
            continue
        fixed[key] = value
    # what the options do not name is absent: without this, DiceBear would draw it by its own chance
    for part in _definition(picture.style)["components"]:
        if "probability" in _definition(picture.style)["components"][part]:
            fixed[f"{part}Probability"] = 100 if picture.options.get(f"{part}Variant") else 0
    svg: str = Avatar(_style(picture.style), {**fixed, "backgroundColor": []}).to_string()
    return svg.replace("</svg>", picture.extra_svg + "</svg>")


def draw(picture: Picture, height_px: int = 64, aspect: float = 1.0) -> Image.Image:
    """Render a picture.

    Args:
        picture: What to draw.
        height_px: Height of the canvas.
        aspect: Width divided by height; the framing's place is a share of the free width.

    Returns:
        An RGB image of `round(height_px * aspect)` by `height_px`.
    """
    width_px = round(height_px * aspect)
    share, place = FRAMINGS[picture.framing]
    if aspect != 1.0:
        share = WIDE_SHARE
    size_px = round(height_px * (share + picture.jitter[0]))
    rendered = resvg_py.svg_to_bytes(svg_string=_svg(picture, size_px))
    avatar = Image.open(io.BytesIO(bytes(rendered))).convert("RGBA")
    canvas = Image.new("RGBA", (width_px, height_px), COLOURS[picture.background])
    x = round((width_px - size_px) * place + picture.jitter[1] * height_px)
    y = round((height_px - size_px) / 2 + picture.jitter[2] * height_px)
    if share > 0.8 and aspect == 1.0:  # a bust that fills the frame stands on its lower edge
        y = height_px - size_px + (round(0.06 * height_px) if share > 1 else 0)
    canvas.alpha_composite(avatar, (max(x, 0), max(y, 0)), (max(-x, 0), max(-y, 0)))
    return canvas.convert("RGB")


def is_held_out(picture: Picture) -> bool:
    """Whether this combination of attributes is one of the 5 % kept for measuring."""
    return hashlib.sha256(describe(picture).encode()).digest()[0] < 13  # 13/256 = 5.1 %


def sample(index: int, seed: int = 0, style: str | None = None, dyed: bool = False) -> Picture:
    """Picture number `index` of the world: a function of its arguments alone.

    Args:
        index: Number of the picture, from 0.
        seed: Another seed is another world of the same kind.
        style: Of `STYLES`; None draws one.
        dyed: Give hair any colour of the palette but the captain's, not only those its style offers.
    """
    rng = random.Random(f"world-{seed}-{index}")
    style = style or rng.choice(sorted(STYLES))
    framing = rng.choices(sorted(FRAMINGS), weights=[5, 2, 1.5, 1.5])[0]
    jitter = (rng.uniform(-0.03, 0.03), rng.uniform(-0.015, 0.015), rng.uniform(-0.015, 0.015))
    options = resolve(style, f"{seed}-{index}")
    background = rng.choice(BACKGROUNDS)
    if dyed and "hairColor" in options:
        options["hairColor"] = [COLOURS[rng.choice([name for name in COLOURS if name != CAPTAINS_HAIR])]]
    return Picture(style, options, background, framing, jitter)
