"""The model card of a version: a README.md that the Hugging Face hub understands."""

import io
from typing import Any

from ruamel.yaml import YAML

from sdlora.params import Base
from sdlora.train.header import About, base_name
from sdlora.train_section import Train


def card(name: str, settings: Train, base: Base, hub_id: str | None, about: About, facts: dict[str, str]) -> str:
    """The card's text; the same run gives the same text.

    Args:
        name: The version.
        settings: The training section.
        base: The base.
        hub_id: Its id on the hub; None for a local base.
        about: What the run found out.
        facts: Measured rows of the table, such as the last loss.
    """
    example = about.captions[0] if about.captions else about.trigger
    rows = {**_settings(settings, base, about), **facts}
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    pipeline = "StableDiffusionXLPipeline" if base.family == "sdxl" else "StableDiffusionPipeline"
    loaded = hub_id or "the base's id or folder"
    return f"""---
{_front_matter(base, hub_id, about)}---

# {name}

A LoRA for {f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"`{base_name(base)}`"}.
Begin a prompt with **{about.trigger}**, such as "{example}".

## Use

`checkpoints/step-…/` holds two files of the same LoRA: `pytorch_lora_weights.safetensors` for diffusers, and
`{name}-step….safetensors` for A1111 (`models/Lora`) and ComfyUI (`models/loras`).

```python
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("{loaded}")
pipeline.load_lora_weights("checkpoints/step-…", weight_name="pytorch_lora_weights.safetensors")
image = pipeline("{example}").images[0]
```

## Training

| | |
| --- | --- |
{table}

`config.yaml` has every setting, `train_log.csv` the loss of every step.
"""


def _settings(settings: Train, base: Base, about: About) -> dict[str, str]:
    return {
        "pictures": str(about.pictures),
        "size": f"{about.size_px[0]} x {about.size_px[1]} px",
        "rank, alpha": f"{settings.rank}, {settings.scaling_alpha:g}",
        "learning rate": f"{settings.learning_rate * base.learning_rate_scale:g}, {settings.lr_schedule}",
        "optimizer": settings.optimizer,
        "steps": str(settings.steps),
        "batch": f"{settings.batch_size} x {settings.accumulation} accumulated",
        "precision": settings.mixed_precision or "no",
        "seed": str(settings.seed),
    }


def _front_matter(base: Base, hub_id: str | None, about: About) -> str:
    tags = ["text-to-image", "diffusers", "diffusers-training", "lora", "template:sd-lora"]
    tags.append("stable-diffusion-xl" if base.family == "sdxl" else "stable-diffusion")
    values: dict[str, Any] = {"base_model": hub_id} if hub_id else {}
    values |= {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "instance_prompt": about.trigger,
        "tags": tags,
        "widget": [{"text": text} for text in about.captions],
    }
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 1000
    yaml.dump(values, text)
    return text.getvalue()
