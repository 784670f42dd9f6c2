"""Which layers carry a LoRA, of which type, at which rates, and the tensors that are saved of it (peft)."""

from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from sdlora import choices
from sdlora.config.train import Train, pattern_of_layers
from sdlora.errors import ParamsError
from sdlora.models import ModelFamily
from sdlora.randomness import seed_of

# Ends of layer names, as in diffusers' UNets; other families say their own.
ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
ATTENTION_FEED_FORWARD = (*ATTENTION, "ff.net.0.proj", "ff.net.2")
ALL_LAYERS = (
    *ATTENTION_FEED_FORWARD, "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj",
    "downsamplers.0.conv", "upsamplers.0.conv",
)  # fmt: skip
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
CHANGES_THE_BASE = ("pissa", "olora")
_PEFT_INITS: dict[str, Any] = {"gaussian": "gaussian", "kaiming": True, "pissa": "pissa", "olora": "olora"}


def lora_config(settings: Train, targets: list[str]) -> LoraConfig:
    """LoRA (Hu et al., arXiv 2106.09685): W + B A alpha / r; DoRA (2402.09353) learns magnitudes too."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scaling_alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.lora_type == "dora",
        init_lora_weights=_PEFT_INITS[settings.init],
        target_modules=targets,
        rank_pattern=dict(settings.rank_pattern),
        alpha_pattern=dict(settings.alpha_pattern),
    )


def loha_config(settings: Train, targets: list[str]) -> LoHaConfig:
    """LoHa: the Hadamard product of two low-rank matrices (FedPara, arXiv 2108.06098)."""
    return LoHaConfig(**_lycoris(settings, targets))


def lokr_config(settings: Train, targets: list[str]) -> LoKrConfig:
    """LoKr: a Kronecker product (KronA, arXiv 2212.10650; LyCORIS, 2309.14859)."""
    return LoKrConfig(**_lycoris(settings, targets))


def _lycoris(settings: Train, targets: list[str]) -> dict[str, Any]:
    return {
        "r": settings.rank,
        "alpha": settings.scaling_alpha,
        "rank_dropout": settings.dropout,
        "target_modules": targets,
        "rank_pattern": dict(settings.rank_pattern),
        "alpha_pattern": dict(settings.alpha_pattern),
    }


def config_of(model: ModelFamily, settings: Train) -> PeftConfig:
    """peft's configuration of the denoiser's LoRA."""
    targets = list(model.layers(settings.targets))
    config: PeftConfig = choices.pick(choices.LORA_TYPES, settings.lora_type)(settings, targets)
    return config


def text_config(settings: Train) -> LoraConfig:
    """peft's configuration of the text encoders' LoRA."""
    chosen = settings.text_encoder
    if chosen is None:
        raise ValueError("there is no LoRA on the text encoders")
    return LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.rank if chosen.alpha is None else chosen.alpha,
        init_lora_weights="gaussian",
        target_modules=list(TEXT_ATTENTION),
    )


def add_lora(model: ModelFamily, settings: Train) -> None:
    """Add a LoRA to a frozen base: to its denoiser, and to its text encoders where the settings say so.

    The start is the base itself, whatever the type: the update is zero (or, for PiSSA and OLoRA, taken
    out of the frozen weights). New parameters are fp32.

    Raises:
        ParamsError: If a pattern of ranks or alphas names no layer that carries a LoRA.
    """
    _check_patterns(model, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("lora", settings.seed))
        model.denoiser.add_adapter(config_of(model, settings))  # type: ignore[operator]
        if settings.text_encoder is not None:
            for module in model.lora_text_encoders().values():
                module.add_adapter(text_config(settings))  # type: ignore[operator]
    for module in (model.denoiser, *model.text_encoders().values()):
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if _autocast_casts(model, settings):
        for module in model.denoiser.modules():
            if isinstance(module, LoraLayer):
                module.cast_input_dtype_enabled = False
    model.speed.lora_added(model.denoiser)


def _check_patterns(model: ModelFamily, settings: Train) -> None:
    ends = model.layers(settings.targets)
    names = [
        name for name, _ in model.denoiser.named_modules() if f".{name}".endswith(tuple(f".{end}" for end in ends))
    ]
    for option in ("rank_pattern", "alpha_pattern"):
        left = list(names)  # by the patterns above: peft takes the first that matches
        for pattern in getattr(settings, option):
            matches = pattern_of_layers(pattern).match
            if not any(map(matches, names)):
                raise ParamsError(
                    f"train.{option}: {pattern!r} names none of the {len(names)} layers that carry a LoRA, such as "
                    f"{names[0]}; their names end in {', '.join(ends)}"
                )
            if not any(map(matches, left)):
                raise ParamsError(
                    f"train.{option}: {pattern!r} has no effect: every layer that it names is named by a pattern above "
                    "it, and the first counts; put it first"
                )
            left = [name for name in left if not matches(name)]


def _autocast_casts(model: ModelFamily, settings: Train) -> bool:
    """Whether autocast puts a layer's input into its own type anyway.

    peft first makes it fp32, as its weights are: half of a step's casts, and not one bit of its result. Dropout and
    DoRA compute between the two casts.
    """
    plain = settings.lora_type == "lora" and not settings.dropout
    return plain and settings.precision(model.base.dtype) != "no"


def parameter_groups(model: ModelFamily, settings: Train, scale: float) -> list[dict[str, Any]]:
    """Trainable parameters with their peak rates, in a fixed order.

    Args:
        model: With its LoRA added.
        settings: Rates, LoRA+ ratio.
        scale: The base's multiplier of every rate.

    Returns:
        Groups {"params", "lr"}: A matrices and the rest, B matrices (LoRA+ only), text encoders.
    """
    rate = settings.learning_rate * scale
    first: list[nn.Parameter] = []
    second: list[nn.Parameter] = []
    for name, parameter in model.denoiser.named_parameters():
        if parameter.requires_grad:
            (second if settings.loraplus_ratio > 1 and "lora_B" in name else first).append(parameter)
    groups: list[dict[str, Any]] = [{"params": first, "lr": rate}]
    if second:
        groups.append({"params": second, "lr": rate * settings.loraplus_ratio})
    if settings.text_encoder is not None:
        found = [p for m in model.lora_text_encoders().values() for p in m.parameters() if p.requires_grad]
        groups.append({"params": found, "lr": settings.text_encoder.learning_rate * scale})
    return groups


@torch.no_grad()
def limit_norms(denoiser: nn.Module, largest: float) -> None:
    """Shrink each update B A alpha / r to at most a Frobenius norm of `largest` (kohya's max-norm)."""
    layers = [m for m in denoiser.modules() if isinstance(m, LoraLayer) and "default" in m.lora_A]
    downs = [layer.lora_A["default"].weight for layer in layers]
    ups = [layer.lora_B["default"].weight for layer in layers]
    # |B A|^2 = trace(B^T B A A^T), without forming the product
    grams = [
        (up.flatten(1).T @ up.flatten(1)) * (down.flatten(1) @ down.flatten(1).T)
        for down, up in zip(downs, ups, strict=True)
    ]
    norms = torch.stack([gram.sum() for gram in grams]).clamp(min=0).sqrt()
    torch._foreach_mul_([*norms.unbind()], [layer.scaling["default"] for layer in layers])
    ratios = (largest / norms.clamp(min=1e-12)).clamp(max=1.0).sqrt().unbind()
    torch._foreach_mul_([*downs, *ups], [*ratios, *ratios])


def initial_tensors(denoiser: nn.Module, settings: Train) -> dict[str, Tensor] | None:
    """A and B before training where the start took them out of the base's weights; None otherwise."""
    if settings.init not in CHANGES_THE_BASE:
        return None
    return {name: value.detach().clone() for name, value in get_peft_model_state_dict(denoiser).items()}


def lora_tensors(model: ModelFamily, settings: Train, initial: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The LoRA in diffusers' form: names starting with the network's (`unet.`, `text_encoder.`), on the CPU, fp32.

    With `initial` (PiSSA, OLoRA) the file holds the difference to the base as it is loaded by everyone:
    B A - B0 A0 = [B, -B0] [A; A0], of twice the rank.
    """
    state = get_peft_model_state_dict(model.denoiser)
    if initial is not None:
        state = {
            name: torch.cat(
                [value, initial[name] if "lora_A" in name else -initial[name]], 0 if "lora_A" in name else 1
            )
            for name, value in state.items()
        }
    states = {model.denoiser_name: state}
    if settings.text_encoder is not None:
        # pivotal tuning adds rows to the token embeddings, which peft would save whole
        states |= {
            name: get_peft_model_state_dict(module, save_embedding_layers=False)
            for name, module in model.lora_text_encoders().items()
        }
    tensors: dict[str, Tensor] = {}
    for part, found in states.items():
        # peft's own names, which diffusers reads as they are: its older names for attention layers
        # alone, mixed with these for all others, make it skip the attention layers
        tensors |= {
            _named(model, part, name): value.detach().float().cpu().contiguous() for name, value in found.items()
        }
    return tensors


def _named(model: ModelFamily, part: str, name: str) -> str:
    """A tensor's name in the file: text encoders' with `text_model.`, as transformers 4 and ComfyUI have it.

    transformers 5 flattened CLIPTextModel; diffusers reads the older names there as well.
    """
    nested = part == model.denoiser_name or name.startswith(("text_model.", "text_projection"))
    return f"{part}.{name}" if nested else f"{part}.text_model.{name}"


def adapter_metadata(model: ModelFamily, settings: Train, parts: tuple[str, ...]) -> dict[str, Any]:
    """What diffusers reads rank and alpha from (`lora_adapter_metadata`), for each part of the pipeline."""
    config = config_of(model, settings)
    of_denoiser: dict[str, Any] = {
        "peft_type": str(config.peft_type.value),
        "r": settings.rank,
        "target_modules": list(model.layers(settings.targets)),
        "rank_pattern": dict(settings.rank_pattern),
        "alpha_pattern": dict(settings.alpha_pattern),
    }
    if settings.lora_type in ("lora", "dora"):
        of_denoiser |= {"lora_alpha": settings.scaling_alpha, "use_rslora": settings.rslora}
        of_denoiser |= {"use_dora": settings.lora_type == "dora"}
    else:
        of_denoiser["alpha"] = settings.scaling_alpha
    if settings.init in CHANGES_THE_BASE:  # see lora_tensors: twice the rank at the same scale
        factor = 2**0.5 if settings.rslora else 2
        of_denoiser |= {"r": 2 * settings.rank, "lora_alpha": factor * settings.scaling_alpha}
        of_denoiser["rank_pattern"] = {name: 2 * rank for name, rank in settings.rank_pattern.items()}
        of_denoiser["alpha_pattern"] = {name: factor * alpha for name, alpha in settings.alpha_pattern.items()}
    found = {f"{model.denoiser_name}.{key}": value for key, value in of_denoiser.items()}
    if settings.text_encoder is not None:
        text = text_config(settings)
        for part in parts:
            if part != model.denoiser_name:
                values = {"r": text.r, "lora_alpha": text.lora_alpha, "target_modules": list(TEXT_ATTENTION)}
                values |= {"rank_pattern": {}, "alpha_pattern": {}}  # diffusers 0.35 wants them, though empty
                found |= {f"{part}.{key}": value for key, value in {**values, "peft_type": "LORA"}.items()}
    return found
