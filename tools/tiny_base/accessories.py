"""What an avatar wears over its style's own parts: hats, glasses, and small things on a face.

Every shape is drawn in the face's own measure: the origin lies between the eyes, and 1 is half of
the distance of the eyes. One drawing therefore fits every style that has an entry in `FACES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tools.tiny_base.palette import colour_name, darker


@dataclass(frozen=True)
class Face:
    """Where a style has its face, in units of its own canvas."""

    centre: tuple[float, float]  # between the eyes
    unit: float  # half of the distance of the eyes
    side: float  # from the middle to the temple, in units
    brow: float  # from the eyes up to a hat's lower edge, in units
    crown: float  # from the eyes up to the top of the head, in units
    cheek: float  # from the eyes down to the cheek, in units
    neck: float  # from the eyes down to the neck, in units


FACES = {
    "toon-head": Face((384, 398), 71, side=2.35, brow=1.7, crown=4.0, cheek=1.05, neck=2.75),
    "personas": Face((32, 28.6), 6.6, side=2.1, brow=1.1, crown=2.45, cheek=1.0, neck=2.9),
}


@dataclass(frozen=True)
class Accessory:
    """One thing that is worn: an entry of `SHAPES` and its colour."""

    kind: str
    colour: str  # #rrggbb

    @property
    def words(self) -> str:
        """As captions say it: 'red top hat'."""
        return f"{colour_name(self.colour)} {self.kind}"


def _cap(face: Face, colour: str) -> str:
    s, b, c = face.side * 1.06, -face.brow, -face.crown * 1.08
    return (
        f'<path d="M{-s} {b} C{-s} {c},{s} {c},{s} {b} Z" fill="{colour}"/>'
        f'<path d="M{-s * 0.2} {b - 0.1} H{s * 1.5} Q{s * 1.5} {b + 0.45},{s} {b + 0.35} H{-s * 0.2} Z" '
        f'fill="{darker(colour)}"/>'
    )


def _beanie(face: Face, colour: str) -> str:
    s, b, c = face.side * 1.08, -face.brow, -face.crown * 1.15
    return (
        f'<circle cx="0" cy="{c * 0.93}" r="{0.5}" fill="{darker(colour, 0.85)}"/>'
        f'<path d="M{-s} {b} C{-s} {c},{s} {c},{s} {b} Z" fill="{colour}"/>'
        f'<rect x="{-s * 1.04}" y="{b - 0.35}" width="{s * 2.08}" height="0.75" rx="0.3" fill="{darker(colour)}"/>'
    )


def _top_hat(face: Face, colour: str) -> str:
    s, b, c = face.side, -face.brow, -face.crown * 1.12
    return (
        f'<rect x="{-s * 0.85}" y="{c}" width="{s * 1.7}" height="{b - c}" fill="{colour}"/>'
        f'<rect x="{-s * 0.85}" y="{b - 0.65}" width="{s * 1.7}" height="0.45" fill="{darker(colour, 0.6)}"/>'
        f'<rect x="{-s * 1.4}" y="{b - 0.25}" width="{s * 2.8}" height="0.5" rx="0.25" fill="{colour}"/>'
    )


def _crown(face: Face, colour: str) -> str:
    s, b, c = face.side * 0.85, -face.brow - 0.25, -face.crown * 1.1
    m = (b + c) / 2
    return (
        f'<path d="M{-s} {b} L{-s * 1.1} {c} L{-s * 0.5} {m} L0 {c} L{s * 0.5} {m} L{s * 1.1} {c} L{s} {b} Z" '
        f'fill="{colour}" stroke="{darker(colour)}" stroke-width="0.12"/>'
    )


def _headband(face: Face, colour: str) -> str:
    s, b = face.side * 1.04, -face.brow
    return (
        f'<path d="M{-s} {b + 0.1} Q0 {b - 0.55},{s} {b + 0.1} V{b - 0.5} Q0 {b - 1.15},{-s} {b - 0.5} Z" '
        f'fill="{colour}"/>'
    )


def _straw_hat(face: Face, colour: str) -> str:
    s, b = face.side, -face.brow - 0.1
    c = b - (face.crown * 1.22 + b) / 0.75  # a curve's top lies at three quarters of the way to its handles
    return (
        f'<ellipse cx="0" cy="{b}" rx="{s * 1.5}" ry="0.55" fill="{darker(colour, 0.88)}"/>'
        f'<path d="M{-s * 0.98} {b} C{-s * 1.1} {c},{s * 1.1} {c},{s * 0.98} {b} Q0 {b + 0.5},{-s * 0.98} {b} Z" '
        f'fill="{colour}"/>'
        f'<path d="M{-s * 0.95} {b} Q0 {b + 0.5},{s * 0.95} {b} L{s * 0.92} {b - 0.55} Q0 {b - 0.05},{-s * 0.92} '
        f'{b - 0.55} Z" fill="#8c1c1c"/>'
    )


def _glasses(face: Face, lens: str, frame: str, fill: str) -> str:
    temples = f"M{-face.side} -0.25 L-1.7 -0.1 M{face.side} -0.25 L1.7 -0.1"
    return (
        f'<g fill="{fill}" stroke="{frame}" stroke-width="0.2">{lens}'
        f'<path d="M-0.25 -0.1 Q0 -0.3,0.25 -0.1 {temples}" fill="none"/></g>'
    )


def _round_glasses(face: Face, colour: str) -> str:
    return _glasses(face, '<circle cx="-1" cy="0" r="0.8"/><circle cx="1" cy="0" r="0.8"/>', colour, "none")


def _square_glasses(face: Face, colour: str) -> str:
    lenses = "".join(f'<rect x="{x}" y="-0.6" width="1.5" height="1.2" rx="0.2"/>' for x in (-1.75, 0.25))
    return _glasses(face, lenses, colour, "none")


def _sunglasses(face: Face, colour: str) -> str:
    lenses = "".join(f'<path d="M{x} -0.55 h1.6 v0.5 q0 0.65,-0.8 0.65 t-0.8 -0.65 Z"/>' for x in (-1.8, 0.2))
    return _glasses(face, lenses, darker(colour, 0.7), colour)


def _scarf(face: Face, colour: str) -> str:
    s, y = face.side * 0.8, face.neck
    return (
        f'<rect x="{s * 0.15}" y="{y}" width="0.75" height="1.9" rx="0.15" fill="{darker(colour)}"/>'
        f'<rect x="{-s}" y="{y - 0.35}" width="{2 * s}" height="0.8" rx="0.4" fill="{colour}"/>'
    )


def _earrings(face: Face, colour: str) -> str:
    x, y = face.side * 1.12, face.cheek * 1.05
    return "".join(
        f'<circle cx="{side * x}" cy="{y}" r="0.28" fill="{colour}" stroke="{darker(colour)}" stroke-width="0.08"/>'
        for side in (-1, 1)
    )


def _plaster(face: Face, colour: str) -> str:
    return (
        f'<rect x="-0.5" y="-0.2" width="1" height="0.4" rx="0.18" fill="{colour}" stroke="{darker(colour)}" '
        f'stroke-width="0.06" transform="translate({face.side * 0.55} {face.cheek}) rotate(-25)"/>'
    )


def _face_paint(face: Face, colour: str) -> str:
    x, y = face.side * 0.42, face.cheek * 0.85
    return "".join(
        f'<rect x="{side * x + shift}" y="{y}" width="0.8" height="0.18" fill="{colour}"/>'
        + f'<rect x="{side * x + shift}" y="{y + 0.32}" width="0.8" height="0.18" fill="{colour}"/>'
        for side, shift in ((-1, -0.6), (1, -0.2))
    )


SHAPES: dict[str, Callable[[Face, str], str]] = {
    "cap": _cap,
    "beanie": _beanie,
    "top hat": _top_hat,
    "crown": _crown,
    "headband": _headband,
    "straw hat": _straw_hat,
    "round glasses": _round_glasses,
    "square glasses": _square_glasses,
    "sunglasses": _sunglasses,
    "scarf": _scarf,
    "earrings": _earrings,
    "plaster": _plaster,
    "face paint": _face_paint,
}
HATS = ("cap", "beanie", "top hat", "crown", "headband")  # the straw hat is one character's own
GLASSES = ("round glasses", "square glasses", "sunglasses")
SMALL = ("plaster", "face paint")


def is_bare(caption: str) -> bool:
    """Whether a caption names no accessory: what the UNet learns to draw. BLIP reads them all."""
    return not any(words.endswith(f" {kind}") for words in caption.split(", ") for kind in SHAPES)


def svg(accessory: Accessory, style: str) -> str:
    """The drawing of an accessory in the units of a style's canvas."""
    face = FACES[style]
    shape = SHAPES[accessory.kind](face, accessory.colour)
    x, y = face.centre
    return f'<g transform="translate({x} {y}) scale({face.unit})">{shape}</g>'
