"""The avatar styles of the world: which parts of each are drawn, and what captions call them.

Styles come from the package `dicebear-styles`; only open licences are used. Three are enough: a small
world drawn well is a better base than a large one. Styles that are not legible at 64 px were left out,
and so were variants that no eye can tell apart at that size, or that repeat what `accessories` draws.
"""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from dicebear import Avatar, Style

#: (option that names the variant, option that names the colour or None, noun), in caption order.
Part = tuple[str | None, str | None, str]


@dataclass(frozen=True)
class Entry:
    """One style: what a prompt calls it, its speaking parts, and how much of the world it is."""

    name: str
    parts: tuple[Part, ...]
    share: float
    only: dict[str, tuple[str, ...]]  # part -> its variants that are drawn; others: all
    chances: dict[str, int] = field(
        default_factory=dict
    )  # part -> percent of the avatars that have it; others: DiceBear's
    headroom: float = 0.0  # of the canvas above the hair, a share of its height


STYLES: dict[str, Entry] = {
    "toon-head": Entry(
        "toon head",
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
        share=0.5,
        only={},
        chances={"beard": 25},
        headroom=0.11,
    ),
    "personas": Entry(
        "persona bust",
        (
            ("hair", "hairColor", "hair"),
            ("facialHair", None, "beard"),
            ("clothes", "clothingColor", "top"),
            (None, "skinColor", "skin"),
            ("eyes", None, "eyes"),
            ("mouth", None, "mouth"),
        ),
        share=0.27,
        only={
            "hair": (
                *("bald", "bobBangs", "bobCut", "bunUndercut", "buzzcut", "curly", "curlyHighTop", "extraLong"),
                *("fade", "long", "mohawk", "pigtails", "shortCombover", "sideShave"),
            ),
            "eyes": ("happy", "open", "sleep", "wink"),
            "mouth": ("bigSmile", "frown", "lips", "smile", "smirk", "surprise"),
            "nose": ("mediumRound", "smallRound"),
        },
        chances={"facialHair": 20},
        headroom=0.1,
    ),
    "critters": Entry(
        "critter",
        (
            ("body", "bodyColor", "body"),
            ("top", "accentColor", "top"),
            ("pattern", None, "pattern"),
            ("eyes", None, "eyes"),
            ("mouth", None, "mouth"),
        ),
        share=0.23,
        only={
            "body": ("dome", "block", "tower", "squat", "round", "peak", "bell", "wedge"),
            "pattern": ("belly", "dots", "stripes", "ring"),
            "eyes": ("round", "dots", "mono", "trio", "happy", "closedLine", "wink", "wide", "sleepy", "angry"),
            "mouth": ("smile", "grin", "laugh", "teeth", "ooh", "line", "frown", "zigzag", "tongue"),
        },
        chances={"cheeks": 0},
    ),
}
#: Held out entirely: the style that the style LoRA learns. Its variants have no speaking names.
HELD_OUT_STYLE = "pixel-art"
HELD_OUT_PARTS: tuple[Part, ...] = (
    ("hair", "hairColor", "hair"),
    ("beard", None, "beard"),
    ("clothes", "clothingColor", "top"),
    (None, "skinColor", "skin"),
    ("glasses", None, "glasses"),
    ("hat", "hatColor", "hat"),
)


@cache
def definition(name: str) -> dict[str, Any]:
    """A style as its package describes it."""
    found: dict[str, Any] = json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8"))
    return found


def attribution(style: str) -> str:
    """Who drew a style and under which licence, in the words its package gives."""
    return str(definition(style)["meta"]["license"]["text"])


@cache
def style_of(name: str) -> Style:
    """A style, read once."""
    return Style(definition(name))


def resolve(style: str, seed: str, **fixed: Any) -> dict[str, Any]:
    """The options that DiceBear chooses for a seed among the variants that the world draws, some of them fixed."""
    entry = STYLES.get(style)
    chosen: dict[str, Any] = {f"{part}Variant": list(names) for part, names in entry.only.items()} if entry else {}
    chosen |= {f"{part}Probability": chance for part, chance in entry.chances.items()} if entry else {}
    options: dict[str, Any] = Avatar(style_of(style), {"seed": seed, **chosen, **fixed}).to_json()["options"]
    return {key: value for key, value in options.items() if key.endswith(("Variant", "Color"))}


def words(variant: str) -> str:
    """A variant's name as a person would type it: 'sideComed' -> 'side comed'."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", variant)
    return re.sub(r"\s*\d+$", "", spaced).lower()


def svg(style: str, options: dict[str, Any], size_px: int, over: str = "") -> str:
    """The drawing of an avatar without a background.

    Args:
        style: Its name in `dicebear-styles`.
        options: Variants and colours; parts that are not named are absent.
        size_px: Side of the square.
        over: More of the drawing, in the style's own units.
    """
    fixed: dict[str, Any] = {"seed": "fixed", "size": size_px}
    for key, value in options.items():
        if key != "backgroundColor" and not key.startswith("animation"):
            fixed[key] = value
    # what the options do not name is absent: without this, DiceBear would draw it by its own chance
    for part, described in definition(style)["components"].items():
        if "probability" in described:
            fixed[f"{part}Probability"] = 100 if options.get(f"{part}Variant") else 0
    drawn: str = Avatar(style_of(style), {**fixed, "backgroundColor": []}).to_string()
    return _OVERLAY.sub(_as_a_veil, drawn).replace("</svg>", over + "</svg>")


# resvg blends inside a mask with nothing, so that a highlight would be a layer of white: faces looked grey.
_OVERLAY = re.compile(r'opacity="([\d.]+)" style="mix-blend-mode:overlay"')


def _as_a_veil(found: re.Match[str]) -> str:
    return f'opacity="{float(found[1]) / 4:.3f}"'
