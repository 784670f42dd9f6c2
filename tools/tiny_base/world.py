"""The world the embedded base lives in: avatars whose captions are their attributes.

`draw` renders any avatar, `describe` says what it shows, so the truth for any caption can be drawn.
"""

import hashlib
import io
import json
import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import resvg_py
from PIL import Image

from tools.tiny_base import accessories, palette, styles
from tools.tiny_base.accessories import Accessory
from tools.tiny_base.styles import HELD_OUT_PARTS, STYLES


@dataclass(frozen=True)
class Framing:
    """How large an avatar is drawn, as shares of the canvas' height, and where it stands across."""

    least: float
    most: float
    across: float  # 0: left edge, 0.5: middle, 1: right edge
    share: float  # of the world's pictures
    high: bool = False  # the head is at the upper edge


FRAMINGS: dict[str, Framing] = {
    "": Framing(0.88, 1.0, 0.5, 0.40),
    "close-up": Framing(1.15, 1.35, 0.5, 0.20, high=True),
    "small": Framing(0.5, 0.68, 0.5, 0.14),
    "small on the left": Framing(0.5, 0.68, 0.02, 0.13),
    "small on the right": Framing(0.5, 0.68, 0.98, 0.13),
}


@dataclass(frozen=True)
class Picture:
    """One avatar to draw: a style, resolved options, what it wears and where it is on its background."""

    style: str
    options: dict[str, Any]
    background: str
    framing: str = ""
    size: float = 0.94  # side of the avatar's canvas, a share of the picture's height
    left: float = 0.03  # its left edge, likewise a share of the height
    top: float = 0.06
    worn: tuple[Accessory, ...] = ()
    over: str = field(default="", repr=False)  # drawn over the avatar, in the style's own units; never said

    @property
    def caption(self) -> str:
        """Everything that a person could say of it."""
        return self.say()

    def say(self, unsaid: Collection[str] = ()) -> str:
        """The caption without the parts of some nouns ('hair', 'skin', an accessory's kind)."""
        return ", ".join(
            part for part in (describe(self, unsaid), f"{self.background} background", self.framing) if part
        )


def _spoken_parts(picture: Picture, unsaid: Collection[str]) -> list[str]:
    known = picture.style in STYLES
    said = []
    for variant_key, colour_key, noun in STYLES[picture.style].parts if known else HELD_OUT_PARTS:
        variant = picture.options.get(f"{variant_key}Variant") if variant_key else None
        if (variant_key and not variant) or (noun or variant_key) in unsaid:
            continue
        colours = picture.options.get(colour_key) if colour_key else None
        colour = palette.colour_name(colours[0]) if colours and variant != "bald" else ""
        label = styles.words(str(variant)) if variant and known else ""
        if label == noun or label.endswith(f" {noun}"):
            label = label[: -len(noun)].strip()
        said.append(" ".join(word for word in (colour, label, noun) if word))
    return said


def describe(picture: Picture, unsaid: Collection[str] = ()) -> str:
    """The attributes of an avatar, in caption order, without background and framing."""
    name = STYLES[picture.style].name if picture.style in STYLES else ""
    worn = [thing.words for thing in picture.worn if thing.kind not in unsaid]
    return ", ".join(part for part in (name, *_spoken_parts(picture, unsaid), *worn) if part)


def draw(picture: Picture, height_px: int = 64, aspect: float = 1.0) -> Image.Image:
    """Render a picture; what stands above the lower edge is continued down to it.

    Args:
        picture: What to draw.
        height_px: Height of the canvas.
        aspect: Width divided by height.

    Returns:
        An RGB image of `round(height_px * aspect)` by `height_px`.
    """
    width_px = round(height_px * aspect)
    size_px = round(height_px * picture.size)
    over = "".join(accessories.svg(thing, picture.style) for thing in picture.worn) + picture.over
    avatar = _avatar(picture.style, json.dumps(picture.options), size_px, over)
    canvas = Image.new("RGBA", (width_px, height_px), palette.COLOURS[picture.background])
    x, y = round(picture.left * height_px), round(picture.top * height_px)
    below = height_px - (y + size_px)
    if below > 0:
        last = avatar.crop((0, size_px - 1, size_px, size_px)).resize((size_px, below))
        _put(canvas, last, x, y + size_px)
    _put(canvas, avatar, x, y)
    return canvas.convert("RGB")


@lru_cache(maxsize=256)
def _avatar(style: str, options: str, size_px: int, over: str) -> Image.Image:
    """An avatar without a background, RGBA, kept: whoever asks about samples draws the same truths for each.

    Args:
        style: As `styles.svg` takes it.
        options: Likewise, as JSON.
        size_px: Likewise.
        over: Likewise.
    """
    rendered = resvg_py.svg_to_bytes(svg_string=styles.svg(style, json.loads(options), size_px, over))
    return Image.open(io.BytesIO(bytes(rendered))).convert("RGBA")


def _put(canvas: Image.Image, part: Image.Image, x: int, y: int) -> None:
    """Lay a part over a canvas; what lies outside is cut off."""
    canvas.alpha_composite(part, (max(x, 0), max(y, 0)), (max(-x, 0), max(-y, 0)))


def eyes(picture: Picture, height_px: int) -> tuple[float, float, float]:
    """The point between the eyes, x and y, and half of their distance, px."""
    face = accessories.FACES[picture.style]
    canvas = float(styles.definition(picture.style)["canvas"]["width"])
    scale = picture.size * height_px / canvas
    x, y = (
        picture.left * height_px + face.centre[0] * scale,
        picture.top * height_px + face.centre[1] * scale,
    )
    return x, y, face.unit * scale


def face_box(picture: Picture, height_px: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the face (crown to chin, temple to temple) in a picture, px, not clipped."""
    face = accessories.FACES[picture.style]
    x, y, unit = eyes(picture, height_px)
    chin = face.neck * 0.85
    edges = (x - face.side * unit, y - face.crown * unit, x + face.side * unit, y + chin * unit)
    return tuple(round(edge) for edge in edges)  # type: ignore[return-value]


def is_held_out(picture: Picture) -> bool:
    """Whether this combination of attributes is one of the 5 % kept for measuring."""
    return hashlib.sha256(describe(picture).encode()).digest()[0] < 13  # 13/256 = 5.1 %


#: Held out: combinations (style, hair, the hair's colour) of the characters that LoRAs learn. The base knows
#: each part of them; no picture it learns from has them together.
IDENTITIES = (("toon-head", "undercut", "teal"), ("personas", "long", "magenta"))


def is_identity(picture: Picture) -> bool:
    """Whether a picture has a held-out character's hair."""
    colours = picture.options.get("hairColor") or ["#000000"]
    found = (picture.style, picture.options.get("hairVariant"), palette.colour_name(colours[0]))
    return found in IDENTITIES


def sample(index: int, seed: int = 0, style: str | None = None) -> Picture:
    """Picture number `index` of the world: a function of its arguments alone.

    Args:
        index: Number of the picture, from 0.
        seed: Another seed is another world of the same kind.
        style: Of `STYLES`; None draws one.
    """
    rng = random.Random(f"world-{seed}-{index}")
    style = style or rng.choices(list(STYLES), weights=[entry.share for entry in STYLES.values()])[0]
    options = styles.resolve(style, f"{seed}-{index}")
    if style in accessories.FACES and rng.random() < 0.75:  # the rest keep the colours of their style
        options["hairColor"] = [palette.varied(rng.choice(palette.HAIR), rng)]
    worn = _worn(style, options, rng)
    size, left, top, framing = _place(style, rng)
    return Picture(style, options, rng.choice(palette.BACKGROUNDS), framing, size, left, top, worn)


def pixel_avatar(number: int, seed: int, rng: random.Random) -> Picture:
    """Avatar `number` of the held-out style, in the plain framing; `rng` draws its background."""
    options = styles.resolve(styles.HELD_OUT_STYLE, f"pixel-{seed}-{number}")
    return Picture(styles.HELD_OUT_STYLE, options, rng.choice(palette.BACKGROUNDS))


def like_a_character(index: int, seed: int) -> Picture:
    """Picture `index` of the world with a held-out character's hair, or a bust with hat and glasses of any colour."""
    rng = random.Random(f"character-{seed}-{index}")
    style, hair, colour = rng.choice((*IDENTITIES, ("personas", "", "")))
    picture = sample(index, seed, style)
    if hair:
        options = {**picture.options, "hairVariant": hair, "hairColor": [palette.varied(colour, rng)]}
        picture = replace(picture, options=options)
    glasses, hat = (
        Accessory(rng.choice(kinds), palette.varied(rng.choice(palette.HAIR), rng))
        for kinds in (accessories.GLASSES, accessories.HATS)
    )
    return replace(picture, worn=(glasses, hat)) if style == "personas" and rng.random() < 0.7 else picture


def _place(style: str, rng: random.Random) -> tuple[float, float, float, str]:
    """Size, left, top and the words of a framing."""
    name = rng.choices(list(FRAMINGS), weights=[framing.share for framing in FRAMINGS.values()])[0]
    framing = FRAMINGS[name]
    size = rng.uniform(framing.least, framing.most)
    left = (1 - size) * framing.across + rng.uniform(-0.03, 0.03)
    highest = -STYLES[style].headroom * size * 0.8
    lowest = highest + 0.06 if framing.high else 1 - size
    if size < 1 and not framing.high:
        highest /= 2
    return size, left, rng.uniform(min(highest, lowest), lowest), name


# Hair that stands out of a hat on every side, or is not there at all without looking wrong.
_BARE_HEADED = ("bun", "spiky", "curly", "curlyHighTop", "mohawk", "bunUndercut")


_COLOURS_OF = {
    "crown": ("gold", "gray"),
    "earrings": ("gold", "gray"),
    "sunglasses": ("black", "navy", "dark red"),
    "plaster": ("white", "tan", "pink", "light blue"),
}


def _worn(style: str, options: dict[str, Any], rng: random.Random) -> tuple[Accessory, ...]:
    """What an avatar wears, inner things first."""
    if style not in accessories.FACES:
        return ()
    found = []

    def perhaps(chance: float, kinds: tuple[str, ...]) -> None:
        if rng.random() < chance:
            kind, colour = rng.choice(kinds), rng.choice(palette.ACCESSORY)
            if kind in _COLOURS_OF:
                colour = rng.choice(_COLOURS_OF[kind])
            found.append(Accessory(kind, palette.varied(colour, rng)))

    perhaps(0.08, ("earrings",))
    perhaps(0.10, accessories.SMALL)
    perhaps(0.22, accessories.GLASSES)
    perhaps(0.10, ("scarf",))
    if options.get("hairVariant") not in _BARE_HEADED:
        perhaps(0.30, accessories.HATS)
    return tuple(found)
