"""docs/params.md: every setting, one row each, made from the schema so that none is missing.

`sdlora docs > docs/params.md`
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from sdlora import choices
from sdlora.config.params import SECTIONS, Params, Version
from sdlora.config.sections import Section
from sdlora.config.train import DEPENDENT, MENUS, Train

#: Of `train`: option -> (unit, where it comes from). Numbers such as 2106.09685 are arXiv papers.
ORIGINS: dict[str, tuple[str, str]] = {
    "lora_type": ("", "LoRA 2106.09685; DoRA 2402.09353; LoHa 2108.06098; LoKr 2212.10650; peft"),
    "rank": ("numbers", "2106.09685; the write-ups' v1 … v10"),
    "alpha": ("", "2106.09685, section 4.1"),
    "rslora": ("", "2312.03732"),
    "init": ("", "PiSSA 2404.02948; OLoRA 2406.01775; peft"),
    "targets": ("", "attention: the write-ups; all: kohya's LoCon"),
    "rank_pattern": ("numbers by regex", "peft"),
    "alpha_pattern": ("by regex", "peft"),
    "dropout": ("share", "2106.09685; peft"),
    "max_norm": ("Frobenius norm", "kohya's scale_weight_norms"),
    "loraplus_ratio": ("ratio", "LoRA+ 2402.12354"),
    "text_encoder": ("section", "DreamBooth LoRA; diffusers"),
    "pivotal": ("section", "textual inversion 2208.01618; cloneofsimo's pivotal tuning"),
    "prior": ("section", "DreamBooth 2208.12242"),
    "learning_rate": ("", "the write-ups; Prodigy wants 1"),
    "optimizer": ("", "1711.05101, 2110.02861, 2306.06101, 2302.06675, 1804.04235, 2405.15682"),
    "betas": ("share", "1412.6980"),
    "weight_decay": ("", "1711.05101"),
    "epsilon": ("", "1412.6980"),
    "d_coef": ("ratio", "2306.06101; its README"),
    "d0": ("", "2306.06101; its README"),
    "lr_schedule": ("", "diffusers; staged: the SDXL write-up"),
    "lr_warmup_steps": ("steps", "diffusers"),
    "lr_cycles": ("cycles", "diffusers"),
    "lr_stages": ("sections", "the SDXL write-up"),
    "ema": ("section", "2006.11239; warm-up as in diffusers' and OneTrainer's"),
    "loss": ("", "Huber: 2403.16728"),
    "huber_c": ("", "2403.16728"),
    "huber_schedule": ("", "2403.16728"),
    "weighting": ("", "min-SNR 2303.09556; soft 2401.11605; debiased 2310.08442"),
    "snr_gamma": ("SNR", "2303.09556"),
    "timestep_sampling": ("", "2403.03206, section 3.1"),
    "timestep_shift": ("ratio", "2403.03206, equation 23"),
    "noise": ("", "offset: crosslabs.org; pyramid: J. Whitaker's multires noise"),
    "noise_offset": ("deviation", "crosslabs.org"),
    "pyramid_discount": ("ratio", "J. Whitaker; kohya"),
    "pyramid_iterations": ("noises", "J. Whitaker; kohya"),
    "input_perturbation": ("deviation", "2301.11706"),
    "steps": ("optimizer steps", "the write-ups"),
    "batch_size": ("pictures", "the write-ups"),
    "processes": ("processes", "torchrun, accelerate"),
    "accumulation": ("passes", "the write-ups"),
    "checkpoint_every": ("optimizer steps", "the write-ups"),
    "max_grad_norm": ("norm", "diffusers' scripts"),
    "latents": ("", "the posterior of 2112.10752"),
    "mask": ("", "masked loss; padding by this pipeline's own geometry"),
    "mask_floor": ("weight", "OneTrainer's unmasked weight"),
    "shuffle_tags": ("", "kohya's shuffle_caption"),
    "keep_tokens": ("tags", "kohya"),
    "tag_dropout": ("chance", "kohya"),
    "caption_dropout": ("chance", "2207.12598"),
    "cache_latents": ("", "every trainer; keyed on content here"),
    "cache_text": ("", "OneTrainer, SimpleTuner"),
    "gradient_checkpointing": ("", "1604.06174"),
    "mixed_precision": ("", "1710.03740"),
    "compile": ("", "torch.compile; diffusers' compile_repeated_blocks"),
    "deterministic": ("", "PyTorch, reproducibility notes"),
    "seed": ("", "randomness is a function of (seed, draw, picture)"),
    "seeds": ("trainings", "what may be said of settings, not of one LoRA"),
}
#: Keys whose values are the names of a menu, whatever section they are in.
OF_MENUS: dict[str, dict[str, str]] = {
    **MENUS, "family": choices.FAMILIES, "by": choices.CAPTIONERS, "noise": choices.NOISES,
    "scheduler": choices.SCHEDULERS, "metrics": choices.METRICS, "engine": choices.ENGINES,
}  # fmt: skip
#: Required in a section, and taken from the top of the file where it does not say it.
OF_THE_FILE: dict[type[Section], tuple[str, ...]] = {Version: ("base", "dataset")}
#: What `load` takes out of the file, and of a base, before the schema sees it.
OF_THE_TOP = "| `defaults` | sections | `{}` | what every version starts from |"
OF_BASES = "| `defaults` | sections | `{}` | what versions on this base start from, over the file's own `defaults` |"
BOUNDS = (
    ("minimum", "≥ {}"),
    ("exclusiveMinimum", "> {}"),
    ("maximum", "≤ {}"),
    ("exclusiveMaximum", "< {}"),
    ("multipleOf", "a multiple of {}"),
)
INTRO = """# Every setting

All keys of `params.yaml`, made from the schema by `make docs`. Unknown keys, and options that cannot apply together,
are errors when the file is read, with the reason.

A version's settings come from five places, each over the ones before: the defaults below, `defaults` in the file, its
base's own (`bases.<name>.defaults`), its preset if it names one (`preset: balanced`), and what it states itself.
`results/<version>/config.yaml` has what a training got.

More about pictures and captions: [data-options.md](data-options.md); metrics and samplers:
[evaluation.md](evaluation.md#metrics); the LoRA's files: [lora-files.md](lora-files.md); an option's time and memory:
[benchmarks.md](benchmarks.md). Numbers such as 2106.09685 are arXiv papers.
"""


def reference_page() -> str:
    """The page in Markdown: one table a section."""
    lines = [INTRO, "## The top of the file", "", *_table(Params), OF_THE_TOP, ""]
    for name, section in SECTIONS.items():
        lines += [f"## {name}", "", (section.__doc__ or "").strip().splitlines()[0], ""]
        lines += [*_training_table()] if section is Train else [*_table(section)]
        lines += [OF_BASES, ""] if name == "bases" else [""]
    return "\n".join(lines)


def _table(section: type[Section]) -> list[str]:
    """A row for each key that has a meaning of its own; the others are sections with a table."""
    rows = [
        f"| `{key}` | {_values(section, key)} | {_default(section, key, field)} | {field.description or ''} |"
        for key, field in section.model_fields.items()
        if field.description or section is not Params
    ]
    return ["| key | values | default | meaning |", "| --- | --- | --- | --- |", *rows]


def _training_table() -> list[str]:
    """Of `train`, also what a number counts and where the option comes from."""
    lines = ["| key | values | default | unit | meaning | source |", "| --- | --- | --- | --- | --- | --- |"]
    for key, field in Train.model_fields.items():
        unit, source = ORIGINS[key]
        default = f"`{_yaml(DEPENDENT[key][2])}`" if key in DEPENDENT else _default(Train, key, field)
        lines.append(f"| `{key}` | {_values(Train, key)} | {default} | {unit} | {field.description} | {source} |")
    return lines


def _values(section: type[Section], key: str) -> str:
    """The names that a key may have, or a number's bounds; empty where anything goes."""
    if key in OF_MENUS:
        return _named(OF_MENUS[key])
    found = _properties(section)[key]
    return ", ".join(text for each in (found, *found.get("anyOf", ())) if (text := _allowed(each)))


@cache
def _properties(section: type[Section]) -> dict[str, Any]:
    """What pydantic says of a section's keys: made once, for a section has up to 60."""
    return dict(section.model_json_schema()["properties"])


def _allowed(schema: Mapping[str, Any]) -> str:
    if "const" in schema or "enum" in schema:
        return _named(schema.get("enum") or [schema["const"]])
    if schema.get("type") == "boolean":
        return _named(("true", "false"))
    return ", ".join(text.format(f"{schema[name]:,}") for name, text in BOUNDS if name in schema)


def _named(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _default(section: type[Section], key: str, field: FieldInfo) -> str:
    if key in OF_THE_FILE.get(section, ()):
        return f"the file's `{key}`"
    if field.is_required():
        return "required"
    if isinstance(field.default, Section):
        return f"see [{type(field.default).__name__.lower()}](#{type(field.default).__name__.lower()})"
    return f"`{_yaml(field.default)}`"


def _yaml(value: object) -> str:
    """A value as `params.yaml` has it, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value) if value != "" else "''"
