"""The model card of a version: a README.md that the Hugging Face hub understands.

Captions come from strangers. Nothing of them becomes code (`repr`), markup (escaped), or a line of its own.
"""

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from sdlora import choices
from sdlora.config.params import Base, Export
from sdlora.config.train import Train
from sdlora.lora import pivotal
from sdlora.lora.metadata import About, base_name, peak_rates
from sdlora.lora.names import (
    AVERAGE,
    EMBEDDINGS,
    FILE_NAME,
    FOR_A1111,
    FOR_DIFFUSERS,
    FOR_EMBEDDINGS,
    FOR_LYCORIS,
    word_of,
)
from sdlora.models import ModelFamily
from sdlora.weights import HUB_ID

_CONFIGS = {"loha": "LoHaConfig", "lokr": "LoKrConfig"}


def card(
    name: str,
    settings: Train,
    base: Base,
    hub_id: str | None,
    about: About,
    facts: dict[str, str],
    export: Export | None = None,
) -> str:
    """The card's text; the same run gives the same text.

    Args:
        name: The version.
        settings: The training section.
        base: The base.
        hub_id: Its id on the hub; None for a local base.
        about: What the run found out.
        facts: Measured rows of the table, such as the last loss.
        export: Type of the files for other tools.
    """
    trigger, example = _spoken(settings, about)[0], _spoken(settings, about)[-1]
    rows = {**_settings(settings, base, about), **facts}
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    made_for = f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else prose(base_name(base))
    return f"""---
{_front_matter(settings, base, hub_id, about)}---

# {name}

A LoRA for {made_for}.
Begin a prompt with **{prose(trigger)}**, such as "{prose(example)}".

## Files

{_files(name, settings, base, export or Export(), about)}

## Use with diffusers

The code takes the last checkpoint. Once the version is measured, `best.json` names the chosen one (`best_step`), and
`{name}.safetensors` is its LoRA.

```python
{_snippet(settings, base, hub_id, about, example)}
```

## Training

| | |
| --- | --- |
{table}

`config.yaml` has every setting, `train_log.csv` the loss of every step.
"""


def one_line(text: str) -> str:
    """A stranger's text without line ends and control or formatting characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def prose(text: str) -> str:
    """A text that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*_{}\[\]()#.!|~:@$^=])", r"\\\1", html.escape(one_line(text), quote=False))


def _spoken(settings: Train, about: About) -> list[str]:
    """The trigger and the example captions as diffusers' prompts say them: a learnt trigger by its token."""
    texts = [about.trigger, *about.captions]
    if settings.pivotal is not None:
        texts = [pivotal.with_token(text, about.trigger) for text in texts]
    return [one_line(text) for text in texts[:2]]


def _files(name: str, settings: Train, base: Base, export: Export, about: About) -> str:
    """Which file is for whom."""
    kohya = _family(base).kohya is not None
    kind = "" if export.dtype == "fp32" else f"-{export.dtype}"
    stem = f"{name}-step…"
    only_a_part = "diffusers alone: ComfyUI reads a part of it or nothing, without an error" if kohya else "diffusers"
    rows = [
        (
            FILE_NAME,
            only_a_part
            if settings.lora_type not in _CONFIGS
            else "diffusers with peft, by the code below: neither diffusers' own loader nor another tool reads it",
        )
    ]
    rows += _kohya_files(stem, kind, settings, export) if kohya else []
    if kind:
        rows.append((f"{stem}{FOR_DIFFUSERS}{kind}.safetensors", "diffusers, half the size"))
    if settings.pivotal is not None:
        word = word_of(about.trigger)
        rows.append((EMBEDDINGS, "diffusers: the trigger's embedding, without which the LoRA is not what was trained"))
        rows.append(
            (
                f"{FOR_EMBEDDINGS}/{word}.safetensors",
                f"the same for A1111 (`embeddings`) and ComfyUI (`models/embeddings`): a prompt says `{word}`, in "
                f"ComfyUI `embedding:{word}`",
            )
        )
    average = (
        f"\n`{AVERAGE}/` in both has the same files of the averaged weights.\n" if settings.ema is not None else ""
    )
    table = "\n".join(f"| `{file}` | {whom} |" for file, whom in rows)
    where = f"`{FILE_NAME}`{_beside(settings)} in\n`checkpoints/step-…/`"
    others = "the same LoRA in several files: {}, all others in `export/step-…/`." if kohya or kind else "its LoRA: {}."
    cards = "\n`<file>.json` and `<file>.preview.png` beside a LoRA are A1111's card of it." if kohya else ""
    return f"""Every checkpoint has {others.format(where)}

| file | for |
| --- | --- |
{table}
{average}{cards}"""


def _kohya_files(stem: str, kind: str, settings: Train, export: Export) -> list[tuple[str, str]]:
    """The files in kohya's format, with the end of their names that says their type."""
    tools, rows = "A1111 (`models/Lora`) and ComfyUI (`models/loras`)", []
    if settings.lora_type == "dora":
        if export.dora_whole != "none":
            which = "the last checkpoint's" if export.dora_whole == "last" else "every checkpoint's"
            whole = f"{tools}, which misread DoRA's own form: {which} updates of whole weights"
            rows.append((f"{stem}{FOR_A1111}{kind}.safetensors", whole))
        return [*rows, (f"{stem}{FOR_LYCORIS}{kind}.safetensors", "kohya's trainer with LyCORIS")]
    trainer = "kohya's trainer" if settings.lora_type == "lora" else "kohya's trainer with LyCORIS"
    return [(f"{stem}{FOR_A1111}{kind}.safetensors", f"{tools}, {trainer}")]


def _beside(settings: Train) -> str:
    return f" and `{EMBEDDINGS}`" if settings.pivotal is not None else ""


def _snippet(settings: Train, base: Base, hub_id: str | None, about: About, example: str) -> str:
    """Python that draws with the last checkpoint; whatever is not ours is a literal."""
    family = _family(base)
    pipeline = family.text2img.__name__
    folder = f"checkpoints/step-{settings.steps:06d}"
    config = _CONFIGS.get(settings.lora_type)
    lines = ["import json", ""] if config else []
    lines += [f"from diffusers import {'AutoencoderKL, ' if _has_vae(base, hub_id) else ''}{pipeline}"]
    if config:
        lines += [f"from peft import {config}, set_peft_model_state_dict", "from safetensors import safe_open"]
    if settings.pivotal is not None:
        lines += ["from safetensors.torch import load_file"]
    lines += ["", *_base(pipeline, base, hub_id)]
    if config:
        lines += _with_peft(config, folder, family.denoiser_name, family.lora_encoders if settings.text_encoder else ())
    else:
        lines += [f'pipeline.load_lora_weights("{folder}", weight_name="{FILE_NAME}")']
    if settings.pivotal is not None:
        lines += _with_embedding(folder, family.pivotal_encoders, pivotal.token_of(about.trigger))
    return "\n".join([*lines, f"image = pipeline({example!r}).images[0]"])


def _base(pipeline: str, base: Base, hub_id: str | None) -> list[str]:
    """Lines that load the base at its revision, with the VAE that drew the samples if that is a hub's."""
    options = f", revision={base.revision!r}" if hub_id and base.revision else ""
    if not _has_vae(base, hub_id):
        return [f"pipeline = {pipeline}.from_pretrained({hub_id or 'id or folder of the base'!r}{options})"]
    revision = f", revision={base.vae_revision!r}" if base.vae_revision else ""
    return [
        f"vae = AutoencoderKL.from_pretrained({base.vae!r}{revision})",
        f"pipeline = {pipeline}.from_pretrained({hub_id!r}{options}, vae=vae)",
    ]


def _has_vae(base: Base, hub_id: str | None) -> bool:
    """Whether base and VAE are both somewhere that the card's reader can load them from."""
    return bool(hub_id and base.vae and HUB_ID.fullmatch(base.vae) and not Path(base.vae).exists())


def _with_peft(config: str, folder: str, denoiser: str, encoders: Sequence[str]) -> list[str]:
    """diffusers' own loader reads neither LoHa nor LoKr; peft does."""
    return [
        f'with safe_open("{folder}/{FILE_NAME}", "pt") as file:',
        '    said = json.loads(file.metadata()["lora_adapter_metadata"])',
        "    tensors = {name: file.get_tensor(name) for name in file.keys()}",
        "",
        "",
        f"def of_{denoiser}(named):",
        f'    return {{name.removeprefix("{denoiser}."): value for name, value in named.items() '
        f'if name.startswith("{denoiser}.")}}',
        "",
        "",
        f"options = of_{denoiser}(said)",
        'options.pop("peft_type")',
        f"pipeline.{denoiser}.add_adapter({config}(**options))",
        f"set_peft_model_state_dict(pipeline.{denoiser}, of_{denoiser}(tensors))",
        *(
            f'pipeline.load_lora_into_text_encoder(tensors, None, pipeline.{name}, prefix="{name}", metadata=said)'
            for name in encoders
        ),
    ]


def _with_embedding(folder: str, encoders: Sequence[str], token: str) -> list[str]:
    lines = [f'learnt = load_file("{folder}/{EMBEDDINGS}")']
    for encoder in encoders:
        tokenizer, key = pivotal.PARTS[encoder]
        lines.append(
            f'pipeline.load_textual_inversion(learnt["{key}"], token="{token}", text_encoder=pipeline.{encoder}, '
            f"tokenizer=pipeline.{tokenizer})"
        )
    if len(encoders) > 1:  # as pivotal.py says; transformers 5 flattened one of the two
        for encoder in encoders:
            tokenizer, _ = pivotal.PARTS[encoder]
            lines.append(
                f'getattr(pipeline.{encoder}, "text_model", pipeline.{encoder}).eos_token_id = '
                f"pipeline.{tokenizer}.eos_token_id"
            )
    return lines


def _family(base: Base) -> type[ModelFamily]:
    family: type[ModelFamily] = choices.pick(choices.FAMILIES, base.family)
    return family


def _settings(settings: Train, base: Base, about: About) -> dict[str, str]:
    return {
        "pictures": str(about.pictures),
        "size": f"{about.size_px[0]} x {about.size_px[1]} px",
        "rank, alpha": f"{settings.rank}, {settings.scaling_alpha:g}",
        "learning rate": f"{peak_rates(settings, base)[0]:g}, {settings.lr_schedule}",
        "optimizer": settings.optimizer,
        "steps": str(settings.steps),
        "batch": f"{settings.batch_size} x {settings.accumulation} accumulated",
        "precision": settings.mixed_precision or "no",
        "seed": str(settings.seed),
    }


def _front_matter(settings: Train, base: Base, hub_id: str | None, about: About) -> str:
    tags = ["text-to-image", "diffusers", "diffusers-training", "lora", "template:sd-lora"]
    tags += [tag] if (tag := _family(base).hub_tag) else []
    said = [pivotal.with_token(text, about.trigger) if settings.pivotal else text for text in about.captions]
    values: dict[str, Any] = {"base_model": hub_id} if hub_id else {}
    values |= {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "instance_prompt": _spoken(settings, about)[0],
        "tags": tags,
        "widget": [{"text": one_line(text)} for text in said],
    }
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 1_000_000  # a folded caption could bring a line of its own
    yaml.dump(values, text)
    return text.getvalue()
