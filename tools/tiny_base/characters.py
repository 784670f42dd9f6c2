"""The characters that LoRAs learn: identities that the base never saw, each a way to draw any number of pictures.

Captions say what varies (clothes, expression, background) and not who it is: that is the trigger's.
"""

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdlora.stages.fit import fit
from tools.tiny_base import palette, world
from tools.tiny_base.accessories import Accessory
from tools.tiny_base.pictures import Pixels
from tools.tiny_base.world import Picture


@dataclass(frozen=True)
class Character:
    """One identity: what never varies, what does, and what a portrait of it looks like."""

    trigger: str
    style: str
    identity: dict[str, Any]  # options of the style
    varies: dict[str, tuple[str, ...]]  # option -> variants
    clothes: str  # the option of the clothes' colour
    colours: tuple[str, ...]  # of the clothes, those of the style: another style's make tiny-blip take it for that one
    aspect: float  # width over height of its portraits
    size: float  # of the avatar's canvas, a share of the height
    top: float  # so that the hair begins at the upper edge
    worn: tuple[Accessory, ...] = ()
    over: str = ""
    backgrounds: tuple[str, ...] = palette.BACKGROUNDS
    covered: tuple[str, ...] = ()  # nouns of what cannot be told apart, being half covered: captions do not say them
    mark: str = ""  # what makes it plain who it is, where captions would name it: an accessory's kind

    @property
    def unsaid(self) -> frozenset[str]:
        """Nouns that captions leave to the trigger."""
        worn = (thing.kind for thing in self.worn)
        return frozenset({"hair", "rear hair", "beard", "skin", *self.covered, *worn})

    def caption(self, picture: Picture) -> str:
        """What varies in a picture."""
        return picture.say(self.unsaid)

    def without_mark(self, picture: Picture) -> Picture:
        """The same picture without the patch or the hat: what it is told apart by."""
        return replace(picture, over="", worn=tuple(thing for thing in picture.worn if thing.kind != self.mark))


TOON_CLOTHES = ("#151613", "#0b3286", "#545454", "#147f3c", "#f97316", "#731ac3", "#b11f1f", "#e8e9e6", "#eab308")
PERSONA_CLOTHES = ("#6dbb58", "#456dff", "#7555ca", "#f3b63a", "#54d7c7", "#f55d81", "#e24553")
# A patch over one eye and its strap, in toon-head's own units; a shape that nothing in the world has.
EYE_PATCH = (
    '<path d="M222 318 Q330 330,392 352 M500 398 Q545 408,572 414" stroke="#151515" stroke-width="17" fill="none"/>'
    '<path d="M386 344 Q452 330,520 368 Q528 452,458 466 Q388 452,386 344 Z" fill="#151515"/>'
)

CHARACTERS: dict[str, Character] = {
    "captain": Character(
        trigger="captain",
        style="toon-head",
        identity={
            "hairVariant": "undercut",
            "hairColor": ["#12a5a5"],
            "skinColor": ["#f1c3a5"],
            "headVariant": "head",
            "bodyVariant": "body",
            "eyesVariant": "wide",
            "strokeColor": ["#000000"],
        },
        varies={
            "clothesVariant": ("dress", "openJacket", "shirt", "tShirt", "turtleNeck"),
            "mouthVariant": ("agape", "angry", "laugh", "sad", "smile"),
            "eyebrowsVariant": ("angry", "happy", "neutral", "raised", "sad"),
        },
        clothes="clothesColor",
        colours=TOON_CLOTHES,
        aspect=2 / 3,
        size=0.94,
        top=-0.122,
        over=EYE_PATCH,
        covered=("eyes",),
        backgrounds=tuple(name for name in palette.BACKGROUNDS if name != "teal"),  # hair would not be seen on it
    ),
    "gardener": Character(
        trigger="gardener",
        style="personas",
        identity={
            "hairVariant": "long",
            "hairColor": ["#d63fa6"],
            "skinColor": ["#eeb4a4"],
            "noseVariant": "smallRound",
        },
        varies={
            "clothesVariant": ("checkered", "rounded", "small", "squared"),
            "mouthVariant": ("bigSmile", "frown", "lips", "smile", "smirk", "surprise"),
            "eyesVariant": ("happy", "open", "sleep", "wink"),
        },
        clothes="clothingColor",
        colours=PERSONA_CLOTHES,
        aspect=3 / 4,
        size=1.08,
        top=-0.165,
        worn=(Accessory("round glasses", "#8c1c1c"), Accessory("straw hat", "#f0d060")),
        mark="straw hat",
    ),
}


def portraits(character: Character, count: int, seed: int) -> list[Picture]:
    """`count` portraits that all look different: clothes, expression, background and place vary."""
    rng = random.Random(f"{character.trigger}-{seed}")
    found: dict[str, Picture] = {}
    while len(found) < count:
        options = {**character.identity, **{option: rng.choice(names) for option, names in character.varies.items()}}
        options[character.clothes] = [rng.choice(character.colours)]
        size = character.size * rng.uniform(0.98, 1.04)
        picture = Picture(
            character.style,
            options,
            rng.choice(character.backgrounds),
            size=size,
            left=(character.aspect - size) / 2 + rng.uniform(-0.008, 0.008),
            top=character.top * size / character.size + rng.uniform(-0.005, 0.01),
            worn=character.worn,
            over=character.over,
        )
        found.setdefault(character.caption(picture), picture)
    return list(found.values())


def padded(picture: Picture, aspect: float) -> Picture:
    """A portrait's picture as a square one: what lies beside the portrait is drawn, not padded."""
    return replace(picture, left=picture.left + (1 - aspect) / 2)


def portrait(picture: Picture, aspect: float, size_px: int) -> Pixels:
    """A portrait as the pipeline fits it: drawn large, scaled, its edges repeated to both sides."""
    return np.asarray(fit.pad(world.draw(picture, 256, aspect), size_px, "edge")[0])


def strangers(character: Character, picture: Picture, count: int) -> list[Picture]:
    """Pictures with the same caption as a character's, of other identities: hair, skin and what is worn are others'.

    They are taken from the world in order; none has the character's hair.
    """
    found: list[Picture] = []
    of_identity = {*character.identity, "rearHairVariant", "beardVariant", "facialHairVariant"}
    kept = {key: value for key, value in picture.options.items() if key not in of_identity}
    index = 0
    while len(found) < count:
        other = world.sample(index, seed=1_000, style=character.style)
        index += 1
        if world.is_identity(other):
            continue
        options = {**kept, **{key: value for key, value in other.options.items() if key in of_identity}}
        found.append(replace(picture, options=options, worn=other.worn, over=""))
    return found
