"""Read `params.yaml`, and the versions that searches have made: the only reader, and how every mistake is told."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sdlora.config import alike, wording
from sdlora.config.evaluate import Evaluate
from sdlora.config.params import MOST_SEEDS, SECTIONS, Params, StudiedParams, Version, training_names
from sdlora.config.search import FOLDER, TRIALS, Trial, Trials, trial_settings
from sdlora.config.sections import ProblemAt, Section, merge
from sdlora.config.studies import FILE, Studies, versions_of
from sdlora.config.train import Train
from sdlora.config.tree import plain, read
from sdlora.errors import ParamsError, suggest

Kept = TypeVar("Kept", bound=Section)
Problem = tuple[tuple[str | int, ...], str]


def load(path: Path, asked: Mapping[str, Trials] | None = None, studies: bool = False) -> Params:
    """Read and validate `params.yaml`, and beside it what searches ask for.

    Args:
        path: The file.
        asked: Trials by the name of their search, in the place of those in its file.
        studies: Whether the versions of `studies.yaml` are wanted, too, where there is one: to plan them takes longer
            than all others together.

    Raises:
        ParamsError: With file, line, key path, value and the nearest valid name of every mistake.
    """
    if not path.exists():
        raise ParamsError(f"{path}: there is no such file in {Path.cwd()}")
    tree = read(path)
    raw = plain(tree)
    problems = [*_unknown_stage_keys(raw), *_useless_keys(raw), *_problems_of_starts(raw)]
    values = {key: value for key, value in raw.items() if key != "defaults"}
    if isinstance(values.get("bases"), dict):
        values["bases"] = {name: _without_start(base) for name, base in values["bases"].items()}
    if isinstance(values.get("versions"), dict):
        values["versions"] = {name: _resolve(raw, version) for name, version in values["versions"].items()}
        further, taken = _further_trainings(values["versions"])
        values["versions"] |= further
        problems += taken
    if alike.is_blind_to_case(path):
        problems += [
            (place, f"differs from {first} in case alone, and here their folders would be one: give it another name")
            for place, first in alike.alike_in(values)
        ]
    if isinstance(values.get("presets"), dict):
        values["presets"] = {name: _resolve(raw, preset) for name, preset in values["presets"].items()}
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        problems += [_explain(item, raw) for item in error.errors() if not _is_echo(item, raw)]
        raise ParamsError(_message(path, tree, problems)) from None
    for name, key, reason in _unknown_names(params, raw["versions"]):
        places = (("versions", name, key), ("presets", str(params.versions[name].preset), key))
        problems.append((next((place for place in places if _has(raw, place)), (key,)), reason))
    if problems:
        raise ParamsError(_message(path, tree, problems))
    searches = {**_searches(path.parent / FOLDER), **(asked or {})}
    params = _with_trials(params, raw, path.parent / FOLDER, searches) if searches else params
    return _with_studies(params, raw, path.parent / FILE) if studies and (path.parent / FILE).exists() else params


def _with_trials(params: Params, raw: Mapping[str, Any], folder: Path, searches: Mapping[str, Trials]) -> Params:
    """The same with the trials of searches among its versions."""
    for search, trials in searches.items():
        where = folder / search / TRIALS
        for name in trials.trials:
            if name in params.versions:
                raise ParamsError(f"{where}: there is a version {name!r} already: give one of them another name")
        found = {name: trial_of(raw, trials, name, where) for name in trials.trials}
        try:
            params = Params.model_validate({**dict(params), "versions": {**params.versions, **found}})
        except ValidationError as error:
            raise ParamsError("\n".join(f"{where}: {_sentence(item)}" for item in error.errors())) from None
        for name, key, reason in _unknown_names(params, found):
            raise ParamsError(f"{where}: {name}.{key}: {reason}")
    return params


def _with_studies(params: Params, raw: Mapping[str, Any], path: Path) -> StudiedParams:
    """The same with the versions that studies compare."""
    tree = read(path)
    studies, said = _section(path, tree, Studies), plain(tree)
    stated, compared = versions_of(studies)
    versions = {name: _resolve(raw, own) for name, own in stated.items()}
    for version in versions.values():
        if isinstance(version.get("train", {}), dict):
            version["train"] = {**version.get("train", {}), "seeds": studies.seeds}

    def told(problems: Iterable[tuple[str, Problem]]) -> None:
        """Tell mistakes in versions where the file makes them, or at the claim that comes to them."""
        found = [(_place(said, compared, name, place), reason) for name, (place, reason) in problems]
        if found:
            raise ParamsError(_message(path, tree, found))

    told((name, ((), f"params.yaml has a version {name} already")) for name in versions if name in params.versions)
    told((name, problem) for name, version in versions.items() for problem in _problems_of(version))
    further, _ = _further_trainings(versions)
    own = {"versions": {**params.versions, **versions, **further}, "studies": studies, "compared": compared}
    try:
        found = StudiedParams.model_validate({**dict(params), **own})
    except ValidationError as error:
        problems = [(_place_of(item), wording.reason(item, tuple(item["loc"]))) for item in error.errors()]
        raise ParamsError(_message(path, tree, problems)) from None
    told((name, ((key,), reason)) for name, key, reason in _unknown_names(found, stated))
    return found


def _problems_of(version: Any) -> Iterator[Problem]:
    """What is wrong in a version's resolved settings."""
    try:
        Version.model_validate(version)
    except ValidationError as error:
        for item in error.errors():
            yield tuple(item["loc"]), wording.reason(item, ("versions", "", *item["loc"]))


def _place(
    raw: Any, compared: Mapping[str, tuple[str, str]], name: str, keys: tuple[str | int, ...]
) -> tuple[Any, ...]:
    """Where `studies.yaml` says what a version has under some keys."""
    places: list[tuple[str, ...]] = [("start",)]
    for claim, (without, changed) in compared.items():
        if name in (without, changed):
            blocks = ("start",) if name == without else ("change", "start")
            places = [*(("claims", claim, block) for block in blocks), ("start",)]
    above = next((place for place in places if keys and _has(raw, (*place, *keys))), places[0][:2])
    return (*above, *keys)


def stated(path: Path) -> dict[str, Any]:
    """What `params.yaml` says, unvalidated: its versions before anything is put below them."""
    found = plain(read(path))
    return found if isinstance(found, dict) else {}


def section_of(path: Path, kind: type[Kept]) -> Kept:
    """A file that is one section.

    Raises:
        ParamsError: With file, line, key path and value of every mistake.
    """
    return _section(path, read(path), kind)


def _section(path: Path, tree: Mapping[str, Any], kind: type[Kept]) -> Kept:
    """The section that a file's tree is."""
    try:
        return kind.model_validate(plain(tree))
    except ValidationError as error:
        told = [_told(item, kind) for item in error.errors() if not _is_echo(item)]
        raise ParamsError(_message(path, tree, told)) from None


def trial_of(raw: Mapping[str, Any], trials: Trials, name: str, where: Path) -> Trial:
    """One trial: what it states over the version that it is like.

    Args:
        raw: What `params.yaml` states.
        trials: Of the trial's search.
        name: The trial.
        where: The file that is blamed.

    Raises:
        ParamsError: If the version is not there, or the settings are none.
    """
    versions = raw.get("versions") or {}
    if trials.like not in versions:
        raise ParamsError(
            f"{where}: like is {trials.like!r}, which params.yaml does not have{suggest(trials.like, versions)}; put "
            f"the version back, or move {where.parent} away"
        )
    settings = _resolve(raw, merge(versions[trials.like] or {}, trials.trials[name]))
    try:
        return Trial.model_validate(trial_settings(settings, trials.by, trials.prune_at))
    except ValidationError as error:
        told = [_told(item, Trial) for item in error.errors() if not _is_echo(item)]
        lines = (f"{where}: {'.'.join(map(str, (name, *place)))}: {reason}" for place, reason in dict.fromkeys(told))
        raise ParamsError("\n".join(lines)) from None


def written_out(raw: Mapping[str, Any], trials: Trials, name: str) -> dict[str, Any]:
    """What a version of `params.yaml` would state to be this trial, trained three times."""
    found = merge(raw["versions"][trials.like] or {}, trials.trials[name])
    found = {key: value for key, value in found.items() if key not in ("chosen", "remark")}
    settings = _resolve(raw, found)
    evaluate = trial_settings(settings, trials.by, ())["evaluate"]
    if Evaluate.model_validate(evaluate) != Evaluate.model_validate(settings.get("evaluate") or {}):
        found["evaluate"] = {**found.get("evaluate", {}), **{key: evaluate[key] for key in ("metrics", "choose_by")}}
    return {**found, "train": {**found.get("train", {}), "seeds": 3}}


def _searches(folder: Path) -> dict[str, Trials]:
    """The trials of every search, by its name."""
    return {path.parent.name: section_of(path, Trials) for path in sorted(folder.glob(f"*/{TRIALS}"))}


def _resolve(raw: Mapping[str, Any], version: Any) -> Any:
    """A version's settings over its preset, its base's defaults, the defaults of all and the two knobs."""
    own = merge(_entry(_entry(raw, "presets"), _named(version, "preset")), version or {})
    start = merge({"base": raw.get("base"), "dataset": raw.get("dataset")}, raw.get("defaults") or {})
    base = _entry(_entry(raw, "bases"), _named(own, "base") or _named(raw, "base"))
    return merge(merge(start, _entry(base, "defaults")), own)


def _named(section: Any, key: str) -> Any:
    return section.get(key) if isinstance(section, dict) else None


def _entry(section: Mapping[str, Any], name: Any) -> dict[str, Any]:
    """The section within a section; an empty one where there is none, which is told elsewhere."""
    found = section.get(name) if isinstance(name, str) else None
    return found if isinstance(found, dict) else {}


def _without_start(base: Any) -> Any:
    """A base without what its versions start from, which is theirs."""
    return {key: value for key, value in base.items() if key != "defaults"} if isinstance(base, dict) else base


def _starts(raw: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What versions start from, and where it stands: the defaults of all, and those of each base."""
    yield ("defaults",), raw.get("defaults")
    bases = raw.get("bases")
    for name, base in bases.items() if isinstance(bases, dict) else ():
        if isinstance(base, dict) and "defaults" in base:
            yield ("bases", name, "defaults"), base["defaults"]


def _unknown_stage_keys(raw: Mapping[str, Any]) -> Iterator[Problem]:
    stages = {name for name in Version.model_fields if name not in ("base", "dataset", "preset", "chosen", "lora")}
    for place, start in _starts(raw):
        if not isinstance(start or {}, dict):
            yield place, f"{wording.written(start)} is not allowed: a section for each stage is wanted"
            continue
        for key in start or {}:
            if key not in stages:
                yield (*place, key), f"unknown key{wording.instead((*place, key), start[key], sorted(stages))}"


def _problems_of_starts(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Mistakes in what versions on a base start from, also where no version has that base."""
    for place, start in _starts(raw):
        if len(place) > 1 and isinstance(start, dict):
            for keys, reason in _problems_of(_resolve(raw, {"base": place[1]})):
                if len(keys) > 1 and _has(raw, (*place, *keys)):
                    yield (*place, *keys), reason


def _further_trainings(versions: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """A version for each training beyond the first; what a person says of the first holds for it alone."""
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, version in versions.items():
        train = version.get("train") if isinstance(version, dict) and version.get("lora") is None else None
        if not isinstance(train, dict):
            continue
        seed, seeds = (train.get(key, Train.model_fields[key].default) for key in ("seed", "seeds"))
        if not (type(seed) is int and type(seeds) is int and seeds <= MOST_SEEDS):  # told by the schema
            continue
        for further in training_names(name, seed, seeds)[1:]:
            if further in versions:
                problems.append((("versions", further), f"is the name of a further training of {name} (train.seeds)"))
            own = {key: value for key, value in version.items() if key not in ("chosen", "remark")}
            found[further] = {**own, "train": {**train, "seed": int(further.rpartition("seed")[2]), "seeds": 1}}
    return found, problems


def _useless_keys(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """What would have no effect: training in a version that names a LoRA, and a preset's own preset."""
    versions, presets = raw.get("versions"), raw.get("presets")
    for name, preset in presets.items() if isinstance(presets, dict) else ():
        if isinstance(preset, dict) and preset.get("preset") is not None:
            reason = f"{preset['preset']!r} is not allowed: a preset starts from the defaults alone; state its settings"
            yield ("presets", name, "preset"), reason
    for name, version in versions.items() if isinstance(versions, dict) else ():
        if isinstance(version, dict) and version.get("lora") is not None:
            for key in ("train", "encode", "flip", "export", "chosen"):
                if key in version:
                    yield ("versions", name, key), "has no effect beside lora, with which nothing is trained"


def _unknown_names(params: Params, names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """What some versions name that is not there: the version, its key, and why."""
    for name in names:
        version = params.versions[name]
        named: list[tuple[str, str, Mapping[str, object]]] = [
            ("base", version.base, params.bases),
            ("dataset", version.dataset, params.datasets),
            *([("preset", version.preset, params.presets)] if version.preset else []),
        ]
        for key, value, menu in named:
            if value not in menu:
                yield name, key, f"{value!r} is not defined{suggest(value, menu)}"


def _stated_at(raw: Any, place: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The part of a pydantic location that the file has: union tags removed."""
    kept: list[str | int] = []
    node: Any = raw
    for key in place:
        if _has(node, (key,)):
            node = node[key]
        elif isinstance(node, dict) and node.get("kind") == key:
            continue
        else:
            node = None
        kept.append(key)
    return tuple(kept)


def _is_echo(item: Any, raw: Any = None) -> bool:
    """Whether other errors say it better: those of a tuple's items, or of the version whose further training it is."""
    if raw is not None and item["loc"][:1] == ("versions",) and item["loc"][1:] and not _has(raw, item["loc"][:2]):
        return True
    return bool(item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"])


def _place_of(item: Any) -> tuple[str | int, ...]:
    """Where a mistake is: the section whose validator has found it, and what that says of the place."""
    found = item.get("ctx", {}).get("error")
    return (*item["loc"], *(found.place if isinstance(found, ProblemAt) else ()))


def _sentence(item: Any) -> str:
    """A mistake in a version that no file states as such: where it would stand, and why."""
    named = "".join(f"{key}." for key in _place_of(item)).rstrip(".").removeprefix("versions.")
    return f"{named}: {wording.reason(item, tuple(item['loc']))}".removeprefix(": ")


def _explain(item: Any, raw: Mapping[str, Any]) -> Problem:
    place = _stated_at(raw, _place_of(item))
    if place[:1] in (("versions",), ("presets",)) and len(place) > 2 and not _has(raw, place):
        stated = raw[str(place[0])].get(place[1]) or {}
        preset = str(_named(stated, "preset"))
        preset_base = _entry(_entry(raw, "presets"), preset).get("base")
        base = str(_named(stated, "base") or preset_base or raw.get("base"))
        below = (("presets", preset), ("bases", base, "defaults"), ("defaults",))
        place = next((found for start in below if _has(raw, found := (*start, *place[2:]))), place)
    return place, wording.reason(item, tuple(item["loc"]))


def _told(item: Any, kind: type[Section]) -> Problem:
    """A mistake in a section that is no part of `params.yaml`."""
    inside = any(key in SECTIONS for key in item["loc"][:-1])
    return _place_of(item), wording.reason(item, tuple(item["loc"]), None if inside else [*kind.model_fields])


def _has(raw: Any, place: tuple[str | int, ...]) -> bool:
    for key in place:
        if not isinstance(raw, dict | tuple) or key not in (raw if isinstance(raw, dict) else range(len(raw))):
            return False
        raw = raw[key]  # type: ignore[index]
    return True


def _line(tree: Any, place: tuple[str | int, ...]) -> int | None:
    line = None
    for key in place:
        try:
            position = tree.lc.key(key) if hasattr(tree, "keys") else tree.lc.item(key)
            line = int(position[0]) + 1
            tree = tree[key]
        except (KeyError, AttributeError, TypeError, IndexError):
            break
    return line


def _message(path: Path, tree: Any, problems: list[Problem]) -> str:
    lines = []
    for keys, why in dict.fromkeys(problems):
        place = tuple(key for key in keys if key != "[key]")  # pydantic's, of a name that cannot be one
        line = _line(tree, place)
        where = f"{path}:{line}" if line else str(path)
        lines.append(f"{where}: {'.'.join(str(key) for key in place) or 'settings'}: {why}")
    return "\n".join(lines)
