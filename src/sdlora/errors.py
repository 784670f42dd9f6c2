"""The one family of errors: messages name the value, the place and the choices."""

from collections.abc import Iterable
from difflib import get_close_matches


class SdloraError(Exception):
    """Something a user can put right; shown without a traceback."""


class ParamsError(SdloraError):
    """`params.yaml` says something that cannot be done."""


class DataError(SdloraError):
    """Pictures, captions or other files are not what a stage needs."""


class MissingError(SdloraError):
    """Something has to be installed or downloaded first; the message says how."""


class ResourceError(SdloraError):
    """The machine has too little of something; the message says what would do."""


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
