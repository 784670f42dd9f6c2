"""How a base's files are read, from a folder or the hub, and what is said where they are not there."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sdlora.errors import MissingError, download_command


def from_pretrained(kind: Any, model: str, revision: str | None, **options: Any) -> Any:
    """Load a pipeline or network; weights that are wanted in fp16 from files in fp16, where there are such."""
    options |= revision_option(model, revision)
    if options["dtype"] == torch.float16:
        with suppress(OSError, ValueError):
            return kind.from_pretrained(model, **options, variant="fp16")
    try:
        return kind.from_pretrained(model, **options)
    except (OSError, ValueError) as error:
        raise unreachable(model, revision, error) from None


def revision_option(model: str, revision: str | None) -> dict[str, str]:
    """The revision as an option for the hub; local files have none."""
    return {} if revision is None or Path(model).exists() else {"revision": revision}


def unreachable(model: str, revision: str | None, error: Exception) -> Exception:
    """What a user does when a base cannot be read; the error itself where the base is local."""
    if Path(model).exists():
        return error
    return MissingError(
        f"the base model {model!r} is neither a local folder nor reachable on the hub. On a machine with network: "
        f"`{download_command(model, revision)}`, or set bases.<name>.model to a folder or a .safetensors file "
        f"({str(error).splitlines()[0]})"
    )
