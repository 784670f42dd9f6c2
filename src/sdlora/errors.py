"""The one family of errors: messages name the value, the place and the choices."""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches


class SdloraError(Exception):
    """Something a user can put right; shown without a traceback.

    A message may quote a stranger (a server, a file): what would steer a terminal is written out.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, keep="\n\t"))


class ParamsError(SdloraError):
    """`params.yaml` says something that cannot be done."""


class DataError(SdloraError):
    """Pictures, captions or other files are not what a stage needs."""


class Diverged(DataError):
    """A training's loss or weights are no longer finite."""


class MissingError(SdloraError):
    """Something has to be installed or downloaded first; the message says how."""


class ResourceError(SdloraError):
    """The machine has too little of something; the message says what would do."""


_STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, format characters such as bidi marks, half characters, breaks
_JOINERS = "\u200c\u200d"  # of emoji, and of several scripts


def printable(text: str, keep: str = "") -> str:
    """A text with everything that steers a terminal or an editor written out, as `\\x1b`.

    Args:
        text: What a stranger wrote.
        keep: Characters that are left alone all the same.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter if letter in keep or _is_seen(letter) else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def one_line(text: str) -> str:
    """A stranger's text as a caption: one line, without what no reader sees (soft hyphens, zero-width spaces)."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return " ".join("".join(filter(_is_seen, line)).split())


def _is_seen(letter: str) -> bool:
    """Whether a letter shows, or joins those beside it."""
    return letter in _JOINERS or unicodedata.category(letter) not in _STEERING


def suggest(name: str, choices: Iterable[str]) -> str:
    """' (did you mean rank?)' or, without a near name, the choices."""
    known = sorted(choices)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; choices: {', '.join(known)}" if known else ""


def download_command(model: str, revision: str | None) -> str:
    """How to get a model from the hub, at the revision that `params.yaml` names."""
    return f"hf download {model}" + (f" --revision {revision}" if revision else "")
