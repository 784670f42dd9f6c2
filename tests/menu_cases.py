"""Every value that `params.yaml` may hold of a version, from the schema, packed into a few tiny versions."""

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sdlora import choices
from sdlora.config.evaluate import NETWORKS
from sdlora.config.params import Version
from sdlora.config.train import DEPENDENT, MENUS

Settings = dict[str, Any]
#: Menus of fields that are typed as text.
TEXT_MENUS = {
    **{("train", name): menu for name, menu in MENUS.items()},
    ("sample", "scheduler"): choices.SCHEDULERS,
    ("caption", "by"): choices.CAPTIONERS,
}
#: What some metrics need.
MEASURABLE: Settings = {"sample.seeds": [1, 2], "sample.max_references": 2}  # report_seeds has four
#: Metrics that ask a network, and small networks that the project has.
OF_NETWORKS = [name for name in choices.METRICS if {*NETWORKS} & choices.pick(choices.METRICS, name).needs]
MODELS: Settings = {"clip_model": "models/clip", "dinov2_model": "models/dinov2", "cmmd_model": "models/clip"}
#: Fields whose values the types do not tell: what else is set with them.
SPECIAL: dict[tuple[str, str], list[Settings]] = {
    ("fit", "fill"): [{"fill": fill} for fill in ("edge", "blur", "#204060")],
    ("fit", "bucket_step_px"): [{"bucket_step_px": 16, "method": "bucket"}],
    ("fit", "bucket_max_aspect"): [{"bucket_max_aspect": 1.5, "method": "bucket"}],
    ("fit", "size_px"): [{"size_px": 64}],
    ("train", "rank_pattern"): [{"rank_pattern": {"to_q": 4}}],
    ("train", "alpha_pattern"): [{"alpha_pattern": {"to_k": 1.0}}],
    ("train", "betas"): [{"betas": [0.8, 0.9]}],
    ("train", "noise"): [{"noise": [name]} for name in choices.NOISES] + [{"noise": [*choices.NOISES]}],
    ("train", "lr_stages"): [
        {"lr_schedule": "staged", "lr_stages": [{"until_step": 2, "learning_rate": 1e-4, "schedule": kind}]}
        for kind in ("constant", "cosine")
    ],
    ("train", "lr_schedule"): [{"lr_schedule": name} for name in choices.LR_SCHEDULES if name != "staged"],
    ("train", "lr_cycles"): [{"lr_cycles": 2, "lr_schedule": "cosine_with_restarts"}],
    ("train", "lr_warmup_steps"): [{"lr_warmup_steps": 1, "lr_schedule": "constant_with_warmup"}],
    ("train", "keep_tokens"): [{"keep_tokens": 2, "shuffle_tags": True}],
    ("train", "prior"): [{"prior": {"prompt": "toon head", "pictures": 2}}],
    ("train", "steps"): [{"steps": 2}],
    ("train", "checkpoint_every"): [{"checkpoint_every": 1}],
    ("train", "processes"): [{"processes": 2, "batch_size": 2}],
    ("sample", "weights"): [{"weights": "raw"}, {"weights": "ema", "train.ema": {"decay": 0.9}}],
    ("sample", "karras"): [{"karras": True, "scheduler": name} for name in ("euler", "dpmpp_2m", "unipc")],
    ("sample", "eta"): [{"eta": 0.5, "scheduler": "ddim"}],
    ("sample", "solver_order"): [{"solver_order": 3, "scheduler": "unipc"}],
    ("sample", "clip_skip"): [{"clip_skip": 2}],
    ("sample", "second_prompt"): [{"second_prompt": "a face"}],
    ("sample", "second_negative_prompt"): [{"second_negative_prompt": "blurry"}],
    ("sample", "negative_prompt"): [{"negative_prompt": "blurry"}],
    ("sample", "hires"): [
        {"hires": {"factor": 1.25, "denoising_strength": 0.5}},
        {"hires": {"factor": 1.5, "denoising_strength": 0.6, "steps": "all", "upscale": "latent"}},
    ],
    ("sample", "seeds"): [{"seeds": [1, 2]}],
    ("sample", "report_seeds"): [{"report_seeds": [1, 2]}],
    ("sample", "decode"): [{"decode": "whole"}, {"decode": "sliced", "batch_size": 2}, {"decode": "tiled"}],
    ("sample", "inference_steps"): [{"inference_steps": 3}],
    ("sample", "max_references"): [{"max_references": 1}],
    ("evaluate", "metrics"): [{"metrics": [*choices.METRICS], "choose_by": OF_NETWORKS, **MODELS, **MEASURABLE}],
    ("evaluate", "choose_by"): [
        *({"metrics": [name], "choose_by": name, **MEASURABLE} for name in choices.METRICS if name not in OF_NETWORKS),
        {"metrics": ["psnr_db", "ssim"], "choose_by": ["psnr_db", "ssim"]},
    ],
    **{("evaluate", name): [{name: model}] for name, model in MODELS.items()},
    **{  # of a model of the hub, which is not asked: a folder has none
        ("evaluate", revision): [{revision: "main", model: "somebody/network"}] for model, revision in NETWORKS.items()
    },
    ("evaluate", "bootstrap_samples"): [{"bootstrap_samples": 100}],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One value of one field, with what it needs beside it."""

    section: str
    field: str
    settings: tuple[tuple[str, Any], ...]  # "section.field" -> value

    def __str__(self) -> str:
        return ", ".join(f"{name}: {value}" for name, value in self.settings)


#: What only a GPU can do; on a CPU it is refused with a sentence.
ON_A_GPU = {"train.mixed_precision": "fp16", "train.deterministic": False, "train.compile": "blocks"}


def needs_a_gpu(case: Case) -> bool:
    """Whether one of the case's values is for a GPU only."""
    return any(ON_A_GPU.get(name) == value for name, value in case.settings if name in ON_A_GPU)


#: What only a base that learns flow matching has; `test_families.py` takes these through every stage.
OF_FLOW_MATCHING = {"train.timestep_sampling": None, "train.timestep_shift": None, "sample.scheduler": "flow_euler"}


#: What only a base with a second text encoder has; the same tests take it through.
OF_TWO_ENCODERS = dict.fromkeys(("sample.second_prompt", "sample.second_negative_prompt"))
OF_ANOTHER_BASE = OF_FLOW_MATCHING | OF_TWO_ENCODERS


def needs_another_base(case: Case) -> bool:
    """Whether one of the case's values means nothing for the embedded base."""
    return any(name in OF_ANOTHER_BASE and OF_ANOTHER_BASE[name] in (None, value) for name, value in case.settings)


def cases() -> list[Case]:
    """Every value of every field of a version's sections."""
    found = []
    for section, info in Version.model_fields.items():
        for field, about in _fields(info).items():
            for settings in SPECIAL.get((section, field)) or _values(section, field, about):
                named = {name if "." in name else f"{section}.{name}": value for name, value in settings.items()}
                found.append(Case(section, field, tuple(named.items())))
    return found


def _fields(info: FieldInfo) -> Mapping[str, FieldInfo]:
    kind = info.annotation
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}


def _values(section: str, field: str, about: FieldInfo) -> Iterator[Settings]:
    """What the type tells: a menu's entries, a literal's words, both truths, another number, a section's own values."""
    needed: Settings = {}
    if field in DEPENDENT:
        other, values, _ = DEPENDENT[field]
        needed = {other: [values[0]] if other == "noise" else values[0]}
    if (section, field) in TEXT_MENUS:
        yield from ({field: name} for name in TEXT_MENUS[section, field])
        return
    for kind in _kinds(about.annotation):
        if get_origin(kind) is Literal:
            yield from ({field: word, **needed} for word in get_args(kind))
        elif kind is bool:
            yield from ({field: value, **needed} for value in (False, True))
        elif kind in (int, float):
            number = DEPENDENT[field][2] if needed else about.default
            yield {field: _another(kind, number), **needed}
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from ({field: settings} for settings in _of_section(kind))
        elif kind is not types.NoneType:
            raise AssertionError(f"{section}.{field}: say in SPECIAL which values to try")


def _of_section(kind: type[BaseModel]) -> Iterator[Settings]:
    """A section below a section: as it is, and with each of its fields changed."""
    yield {}
    changed: Settings = {}
    for name, about in kind.model_fields.items():
        for inner in _kinds(about.annotation):
            if inner in (int, float):
                changed[name] = _another(inner, about.default)
    if changed:
        yield changed


def _another(kind: type, default: Any) -> int | float:
    """A number that is not the default, and not far from it."""
    if default is None:
        return 2 if kind is int else 0.5
    if kind is int:
        return int(default) + 1
    return float(default) * (1.25 if default >= 1 else 0.5) or 0.1


def _kinds(annotation: Any) -> list[Any]:
    """The types that a field may have, without Annotated and unions around them."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    if hasattr(annotation, "__metadata__"):
        return _kinds(annotation.__origin__)
    return [annotation]


def packed(start: Settings, waiting: list[Case]) -> tuple[list[Settings], list[tuple[Case, str]]]:
    """As few versions as a greedy walk finds in which every case stands once.

    Args:
        start: What every version starts from, by "section.field"; cases may replace it.
        waiting: The cases, in the order in which they are tried.

    Returns:
        The versions, and the cases that the schema refuses even alone, with its sentence.
    """
    versions: list[Settings] = []
    refused: list[tuple[Case, str]] = []
    while waiting:
        chosen: Settings = {}
        left = []
        for case in waiting:
            wanted = dict(case.settings)
            fits = all(chosen.get(name, value) == value for name, value in wanted.items())
            if fits and (reason := problem({**start, **chosen, **wanted})) is None:
                chosen |= wanted
            elif not chosen and fits:
                refused.append((case, str(reason)))
            else:
                left.append(case)
        waiting = left
        if chosen:
            versions.append(nested({**start, **chosen}))
    return versions, refused


def problem(settings: Settings) -> str | None:
    """Why the schema refuses a version; None if it does not."""
    try:
        Version.model_validate_json(json.dumps({**nested(settings), "base": "tiny", "dataset": "small"}))
    except ValidationError as error:
        return str(error)
    return None


def nested(settings: Settings) -> Settings:
    """{"train.rank": 2} -> {"train": {"rank": 2}}."""
    found: Settings = {}
    for name, value in settings.items():
        section, field = name.split(".")
        found.setdefault(section, {})[field] = value
    return found
