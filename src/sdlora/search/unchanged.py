"""Whether `params.yaml` still says of trials what it said: Snakemake reads it anew for each batch, hours later."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora import records
from sdlora.config.load import load
from sdlora.config.params import Params
from sdlora.errors import ParamsError
from sdlora.flow.identity import differing, identity_of, told

if TYPE_CHECKING:
    from sdlora.search.run import Search


def check_params(search: "Search") -> None:
    """See that trials to come can be compared with those before.

    Raises:
        ParamsError: If `params.yaml` is broken, or no longer says of the version and of what trials may name what it
            said when the command was started. No trial is to blame.
    """
    now = load(Path("params.yaml"), {search.name: search.known})
    was, is_now = (named(_said_of_trials(search, params)) for params in (search.params, now))
    if names := differing(was, is_now):
        raise ParamsError(
            f"params.yaml is no longer as it was when this search was started: {told(names, was, is_now)}; set that "
            f"back, and the same command goes on"
        )


def _said_of_trials(search: "Search", params: Params) -> dict[str, Any]:
    """All that the settings say of the version, and of the bases, datasets and presets that trials may name."""
    version = params.versions[search.study.like]
    found: dict[str, Any] = {"threads": params.threads}
    found["version"] = version.model_dump(mode="json", exclude={"remark", "chosen"})
    for key, menu in (("base", params.bases), ("dataset", params.datasets), ("preset", params.presets)):
        axis = search.space.axes.get(key)
        names = axis.ends if axis else (getattr(version, key),)
        found[f"{key}s"] = {str(name): menu[name].model_dump(mode="json") for name in names if name in menu}
    return found


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every value by its dotted name, as JSON has it."""
    return identity_of(records.parse_json(records.compact_json(dict(values))), [])
