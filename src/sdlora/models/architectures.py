"""Networks made of shapes or of random numbers, from a base's configs or those its family was published with.

With shapes alone the preflight counts memory; with random weights a benchmark times the real sizes where no weights
are at hand.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn

from sdlora import choices
from sdlora.config.params import Base
from sdlora.errors import DataError
from sdlora.models.family import ModelFamily
from sdlora.models.loading import revision_option
from sdlora.randomness import generator
from sdlora.tensors import DTYPES
from sdlora.weights import BASE, NOT_LOADED, UNREADABLE, VAE, unreadable

_LIBRARIES: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}
Config = tuple[str, dict[str, Any]]  # class of diffusers or transformers, its settings


def outline(family: type[ModelFamily], base: Base) -> tuple[dict[str, nn.Module], Any]:
    """A base's networks with parameters on the meta device, by their name in the pipeline, and its scheduler.

    A single-file checkpoint says neither: the networks are those its family was published with, the scheduler None.

    Raises:
        MissingError: If the base's configs are neither local nor reachable.
        DataError: If the base is a single file and its family has no published configs, or its configs are damaged.
    """
    scheduler = None
    if base.model.endswith(".safetensors"):
        if not family.published:
            raise DataError(f"{base.model}: family {base.family} has no published configs: use a diffusers folder")
        configs = dict(family.published)
    else:
        try:
            configs, scheduler = _configs_of(family.text2img, base.model, base.revision)
        except UNREADABLE as error:
            raise unreadable(BASE, base.model, base.revision, error) from None
    if base.vae is not None:
        options = revision_option(base.vae, base.vae_revision)
        try:
            configs["vae"] = ("AutoencoderKL", dict(diffusers.AutoencoderKL.load_config(base.vae, **options)))
        except UNREADABLE as error:
            raise unreadable(VAE, base.vae, base.vae_revision, error) from None
    return {name: empty(config) for name, config in configs.items()}, scheduler


def _configs_of(pipeline: Any, model: str, revision: str | None) -> tuple[dict[str, Config], Any]:
    options = revision_option(model, revision)
    found: dict[str, Config] = {}
    scheduler = None
    for name, entry in pipeline.load_config(model, **options).items():
        if not isinstance(entry, list | tuple) or len(entry) != 2 or entry[0] not in _LIBRARIES:
            continue
        kind: Any = None if name in NOT_LOADED else getattr(_LIBRARIES[entry[0]], entry[1], None)
        if name == "scheduler" and kind is not None:
            scheduler_class: Any = kind
            scheduler = scheduler_class.from_pretrained(model, subfolder=name, **options)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            continue
        network: Any = kind
        if entry[0] == "diffusers":
            found[name] = (entry[1], dict(network.load_config(model, subfolder=name, **options)))
        else:
            config = network.config_class.from_pretrained(model, subfolder=name, **options)
            found[name] = (entry[1], config.to_dict())
    return found, scheduler


def empty(config: Config) -> nn.Module:
    """A network whose parameters are on the meta device: shapes without memory or time."""
    name, settings = config
    with init_empty_weights(include_buffers=False):
        network: nn.Module
        if hasattr(diffusers, name):
            network = getattr(diffusers, name).from_config(settings)
        else:
            kind = getattr(transformers, name)
            network = kind(kind.config_class(**settings))
    if isinstance(network, transformers.PreTrainedModel):
        network.tie_weights()  # what T5 has once was made twice
    return network


def fill(network: nn.Module, dtype: torch.dtype, *seed: object) -> None:
    """Give an empty network random weights: norms are one, biases zero, all else small and normal.

    One block of numbers is repeated, scaled by 1 / sqrt(inputs): signals neither die nor explode,
    and a billion of them take a second or two.
    """
    block = torch.randn(1 << 20, generator=generator("random weights", *seed))
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = _values(name, parameter.shape, block, dtype)
            setattr(module, name, nn.Parameter(value, requires_grad=parameter.requires_grad))


def _values(name: str, shape: torch.Size, block: Tensor, dtype: torch.dtype) -> Tensor:
    if len(shape) < 2:
        return torch.full(shape, 0.0 if name == "bias" else 1.0, dtype=dtype)
    value = torch.empty(shape, dtype=dtype)
    flat, scaled = value.view(-1), (block * (shape[0] / value.numel()) ** 0.5).to(dtype)
    for start in range(0, flat.numel(), len(block)):
        flat[start : start + len(block)] = scaled[: flat.numel() - start]
    return value


def save_random(family: str, folder: Path, dtype: str, tokenizer: Path) -> Base:
    """Write a family's published architecture with random weights as a diffusers folder.

    Args:
        family: Entry of choices.FAMILIES with published configs, all of whose tokenizers are CLIP's.
        folder: Where to.
        dtype: Type of the weights in the files, and of the base that is returned.
        tokenizer: Folder of a CLIP tokenizer whose vocabulary is at most the model's.

    Returns:
        A base whose pictures are noise and whose time and memory are the real model's.
    """
    kind: type[ModelFamily] = choices.pick(choices.FAMILIES, family)
    options: dict[str, Any] = dict.fromkeys(kind.text2img._get_signature_keys(kind.text2img)[0])
    if kind.published_scheduler is not None:
        name, settings = kind.published_scheduler
        options["scheduler"] = getattr(diffusers, name)(**settings)
    words = transformers.CLIPTokenizer.from_pretrained(tokenizer)
    options |= {name: words for name in options if name.startswith("tokenizer")}
    for name, config in kind.published.items():
        options[name] = empty(config)
        if name.startswith("text_encoder"):
            options[name].config.eos_token_id = words.eos_token_id
        fill(options[name], DTYPES[dtype], family, name)
    kind.text2img(**{**options, **kind.load_options}).save_pretrained(folder)
    return Base.model_validate(
        {"model": str(folder), "family": family, "size_px": kind.published_size_px, "dtype": dtype, "captioner": "-"}
    )
