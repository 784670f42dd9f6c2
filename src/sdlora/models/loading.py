"""In which type a base's weights are held, how its files are read, and what is refused before they are."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sdlora import gpu, weights
from sdlora.config.params import Base
from sdlora.config.train import Train
from sdlora.errors import DataError, ParamsError
from sdlora.tensors import DTYPES


def weights_dtype(base: Base, device: torch.device) -> torch.dtype:
    """Type of the frozen weights: the base's own, but fp32 for fp16 on a CPU, which cannot compute in it."""
    if device.type == "cpu" and base.dtype == "fp16":
        return torch.float32
    return DTYPES[base.dtype]


def trained_base(base: Base, settings: Train, device: torch.device) -> Base:
    """The base with its weights in the type that training computes in, where both are half types.

    Autocast would cast every frozen weight again at each forward pass and keep the copies for the backward pass. A CPU
    keeps fp16 weights in fp32 and bf16 ones as they are.
    """
    precision = settings.precision(base.dtype)
    if device.type == "cpu" or "fp32" in (base.dtype, precision) or precision == "no":
        return base
    return base.model_copy(update={"dtype": precision})


def from_pretrained(
    kind: Any, option: str, model: str, revision: str | None, device: torch.device | None = None, **options: Any
) -> Any:
    """Load a pipeline or network; weights that are wanted in fp16 from files in fp16, where there are such.

    Where there are no others, those are read as any type.

    Args:
        kind: A class of diffusers or transformers.
        option: The key of `params.yaml` that names the model.
        model: A hub id or a folder.
        revision: Of the hub.
        device: Where to. A card takes one tensor after the other, where whole networks would wait in RAM until the
            last is read; None leaves them in RAM.
        options: Of the library, `dtype` among them.

    Raises:
        DataError: If the weights are no safetensors, or cannot be read.
        MissingError: If they are neither local nor reachable.
    """
    weights.refuse_others(model)
    options |= revision_option(model, revision)
    if device is not None and device.type != "cpu":
        options["device_map"] = device.type
    half = options["dtype"] == torch.float16

    def read(**variant: str) -> Any:
        return kind.from_pretrained(model, **options, use_safetensors=True, **variant)

    try:
        if half:
            with suppress(OSError, ValueError):  # there may be none
                return read(variant="fp16")
        return read()
    except weights.UNREADABLE as error:
        if _is_of_the_card(error):
            raise
        refused = weights.refusal(model, revision, error)
        if refused is None or half:
            raise refused or weights.unreadable(option, model, revision, error) from None
    try:
        found = read(variant="fp16")
    except weights.UNREADABLE as error:
        if _is_of_the_card(error):
            raise
        raise refused from None
    print(f"note: {model} has weights in fp16 alone, which are read as {options['dtype']}", flush=True)
    return found


def _is_of_the_card(error: BaseException) -> bool:
    """Whether an error says that memory is full or a card lost, which says nothing of the files that were read."""
    return gpu.is_full(error) or gpu.is_lost(error)


def from_file(kind: Any, model: str, options: Mapping[str, Any]) -> Any:
    """Load a pipeline from a single file, which brings no configs.

    Raises:
        DataError: If it cannot be read, or diffusers has no configs for it.
    """
    try:
        return kind.from_single_file(model, **options)
    except weights.UNREADABLE as error:
        if _is_of_the_card(error):
            raise
        call = f"{kind.__name__}.from_single_file({model!r}).save_pretrained(...)"
        raise DataError(
            f"{weights.unreadable(weights.BASE, model, None, error)}; if it is whole, diffusers lacks its configs, "
            f"which it fetches from the hub: where there is a network, `{call}` writes a folder that needs none"
        ) from None


def revision_option(model: str, revision: str | None) -> dict[str, str]:
    """The revision as an option for the hub; local files have none."""
    return {} if revision is None or Path(model).exists() else {"revision": revision}


def scheduler_file(model: str) -> str:
    """Where a base says what it learns, for messages."""
    return model if model.endswith(".safetensors") else f"{model}/scheduler/scheduler_config.json"


def check_class(kind: Any, settings: Train, family: str, denoiser: Any) -> None:
    """Refuse a training that a model family cannot have; no config is needed.

    Args:
        kind: The family's class.
        settings: The training section.
        family: Its entry of choices.FAMILIES.
        denoiser: The network that is trained, or its class; None where nothing is known of it.

    Raises:
        ParamsError: If the settings ask for what the family does not have.
    """
    if settings.text_encoder is not None and not kind.lora_encoders:
        raise ParamsError(f"train.text_encoder: no text encoder of family {family} can carry a LoRA: leave it out")
    if settings.pivotal is not None and not kind.pivotal_encoders:
        raise ParamsError(f"train.pivotal: diffusers loads no learnt embeddings for family {family}: leave it out")
    if settings.compile == "blocks" and not getattr(denoiser, "_repeated_blocks", True):
        raise ParamsError(
            f"train.compile: diffusers does not say which blocks family {family} repeats: set compile: none"
        )


def quieten() -> None:
    """Keep the libraries' own bars and hints out of the stages' progress."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
