"""SD 1.5's and SDXL's architectures, written out, and networks made of shapes or of random numbers.

The configs are those the models were published with. With shapes alone the preflight counts memory;
with random weights a benchmark times the real sizes where no weights are at hand.
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
from sdlora.models.family import DTYPES, revision_option, unreachable
from sdlora.randomness import generator

_LIBRARIES: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}
Config = tuple[str, dict[str, Any]]  # class of diffusers or transformers, its settings

_NOT_LOADED = ("safety_checker", "feature_extractor")
_BETAS = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1,
}  # fmt: skip
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_CLIP_L: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip
_OPENCLIP_BIG_G: dict[str, Any] = {
    **_CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
_SD15_UNET: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "norm_num_groups": 32,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
_SDXL_UNET: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip

#: By family: the networks of the model it is named for, as published.
PUBLISHED: dict[str, dict[str, Config]] = {
    "sd": {
        "unet": ("UNet2DConditionModel", _SD15_UNET),
        "vae": ("AutoencoderKL", {**_VAE, "sample_size": 512, "scaling_factor": 0.18215}),
        "text_encoder": ("CLIPTextModel", _CLIP_L),
    },
    "sdxl": {
        "unet": ("UNet2DConditionModel", _SDXL_UNET),
        "vae": ("AutoencoderKL", {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}),
        "text_encoder": ("CLIPTextModel", _CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", _OPENCLIP_BIG_G),
    },
}
#: Native side of a square picture of those models, px.
SIZE_PX = {"sd": 512, "sdxl": 1024}


def outline(pipeline: Any, base: Base) -> dict[str, nn.Module]:
    """A base's networks with parameters on the meta device, by their name in the pipeline.

    Raises:
        MissingError: If the base's configs are neither local nor reachable.
    """
    if base.model.endswith(".safetensors"):
        configs = PUBLISHED[base.family]
    else:
        try:
            configs = _configs_of(pipeline, base.model, base.revision)
        except (OSError, ValueError) as error:
            raise unreachable(base.model, base.revision, error) from None
    if base.vae is not None:
        options = revision_option(base.vae, base.vae_revision)
        try:
            configs["vae"] = ("AutoencoderKL", dict(diffusers.AutoencoderKL.load_config(base.vae, **options)))
        except (OSError, ValueError) as error:
            raise unreachable(base.vae, base.vae_revision, error) from None
    return {name: empty(config) for name, config in configs.items()}


def _configs_of(pipeline: Any, model: str, revision: str | None) -> dict[str, Config]:
    options = revision_option(model, revision)
    found: dict[str, Config] = {}
    for name, entry in pipeline.load_config(model, **options).items():
        if not isinstance(entry, list | tuple) or len(entry) != 2 or entry[0] not in _LIBRARIES:
            continue
        kind: Any = None if name in _NOT_LOADED else getattr(_LIBRARIES[entry[0]], entry[1], None)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            continue
        network: Any = kind
        if entry[0] == "diffusers":
            found[name] = (entry[1], dict(network.load_config(model, subfolder=name, **options)))
        else:
            config = network.config_class.from_pretrained(model, subfolder=name, **options)
            found[name] = (entry[1], config.to_dict())
    return found


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
        family: Entry of `PUBLISHED`.
        folder: Where to.
        dtype: Type of the weights in the files, and of the base that is returned.
        tokenizer: Folder of a CLIP tokenizer whose vocabulary is at most the model's.

    Returns:
        A base whose pictures are noise and whose time and memory are the real model's.
    """
    text2img = choices.pick(choices.FAMILIES, family).text2img
    options: dict[str, Any] = dict.fromkeys(text2img._get_signature_keys(text2img)[0])
    options["scheduler"] = diffusers.DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False)
    words = transformers.CLIPTokenizer.from_pretrained(tokenizer)
    options |= {name: words for name in options if name.startswith("tokenizer")}
    for name, config in PUBLISHED[family].items():
        options[name] = empty(config)
        if name.startswith("text_encoder"):
            options[name].config.eos_token_id = words.eos_token_id
        fill(options[name], DTYPES[dtype], family, name)
    switches = {"requires_safety_checker": False} if family == "sd" else {}
    text2img(**options, **switches).save_pretrained(folder)
    return Base.model_validate(
        {"model": str(folder), "family": family, "size_px": SIZE_PX[family], "dtype": dtype, "captioner": "-"}
    )
