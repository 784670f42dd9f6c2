"""Memory of each phase of a run, counted on tensors that have shapes and no numbers.

The base's own configs make networks without weights, the LoRA goes onto them, and one step of the
run's settings is taken, so every option counts as it will.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdlora import choices, gpu
from sdlora.config.params import Base, Version
from sdlora.config.sample import Sample
from sdlora.config.train import Train
from sdlora.errors import SdloraError
from sdlora.lora import pivotal, types
from sdlora.memory.demand import Demand, latent_shape
from sdlora.memory.meter import Meter, Shapes, as_if_there_were_a_card, become_fake, optimizer_cost, size_of
from sdlora.models import Conditioning, ModelFamily
from sdlora.models.family import first_loaded
from sdlora.models.loading import quieten, trained_base
from sdlora.stages.sample.drawing import check_drawing, last_side, tile_side
from sdlora.tensors import DTYPES


class Unpredictable(SdloraError):
    """A training whose step cannot be taken on tensors without numbers."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the run and what lies in memory at its worst moment, bytes by name."""

    name: str
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.parts.values())


class _Shapes:
    """A base whose networks are fake tensors: everything runs on it, nothing is computed."""

    def __init__(self, base: Base, device: torch.device, on: torch.device | None = None) -> None:
        """Networks without weights.

        Args:
            base: Only its configs are read.
            device: Whose types the networks have.
            on: Where they pretend to be, if not there.
        """
        if device.type == "cuda":  # without a number, a build of torch without CUDA would ask for the current card
            device = torch.device("cuda", device.index or 0)
        self.device, self.mode = on or device, Shapes()
        family: type[ModelFamily] = choices.pick(choices.FAMILIES, base.family)
        self.model = family.outline(base, device)
        self.model.device = self.device
        for part in self.model.parts():
            put_into(part, self.model.dtype)

    def weights(self) -> dict[str, int]:
        """Bytes of each network's frozen weights."""
        parts = self.model.parts()
        return {_name_of(self.model, part): size_of(part.parameters()) for part in parts}

    def materialize(self) -> None:
        """From here on the parameters are on the device, as far as torch can tell."""
        for part in self.model.parts():
            become_fake(part, self.mode, self.device)

    def peak(self, work: Callable[[], Any], gradients: bool = False) -> tuple[int, Any]:
        """Bytes that `work` needs beside the weights, and what it returns.

        Raises:
            Unpredictable: If it needs numbers, which fake tensors do not have.
        """
        weights = [p for part in self.model.parts() for p in (*part.parameters(), *part.buffers())]
        try:
            with (
                as_if_there_were_a_card(self.device), self.mode, Meter(weights) as meter,
                torch.set_grad_enabled(gradients),
            ):  # fmt: skip
                result = work()
        except SdloraError:
            raise
        except Exception as error:  # whatever a network does when it asks a fake tensor for its numbers
            said = (str(error).splitlines() or [""])[0]
            raise Unpredictable(f"its memory cannot be predicted ({type(error).__name__}: {said})") from error
        return meter.peak, result


def put_into(network: nn.Module, dtype: torch.dtype) -> None:
    """Give a network's parameters, which have no numbers yet, a type."""
    for tensor in network.parameters():
        tensor.data = tensor.data.to(dtype)


def predict(
    settings: Train, base: Base, demand: Demand, device: torch.device, on: torch.device | None = None
) -> list[Phase]:
    """Memory of each phase of the stage `train`, on the device that trains.

    Args:
        settings: The run's; a `mixed_precision` of None means the base's type.
        base: Only its configs are read.
        demand: Pictures and captions.
        device: Where the networks are.
        on: Where their tensors pretend to be, if not there: without a card no build of torch takes a backward pass on
            fake CUDA tensors, and a CPU build takes attention apart, which would be many times the memory.

    Returns:
        Phases in the order they happen: prior (if any), load, latents (if the run encodes them), captions, train.

    Raises:
        Unpredictable: If a step asks for numbers that nobody has before training.
        DataError, ParamsError: If the base, or the device, cannot have such a training.
    """
    quieten()
    if device.type == "cuda":
        gpu.check_scaler(settings, base)
    base = trained_base(base, settings, device)
    shapes = _Shapes(base, device, on)
    model = shapes.model
    model.check(settings)
    model.check_size(*demand.latent[1:])
    before = _before(base, settings, device, on)
    if (demand.images or demand.encodes) and device.type == "cuda":  # another VAE than the base's
        put_into(model.pipeline.vae, DTYPES[demand.vae])
    weights = shapes.weights()
    parameters = _add_lora(model, settings)
    shapes.materialize()
    trained = {name for name, part in model.text_encoders().items() if _learns(part)}
    live = {*trained, *(model.text_encoders() if demand.texts else ())}
    kept = _weights_kept(model, weights, live, demand)
    one, row = shapes.peak(lambda: model.encode_tokens(_blank_tokens(model, 1)))
    captions = 0 if trained else demand.captions * size_of(row.values())
    first = {name: size for name, size in weights.items() if name in model.names_of(first_loaded(base, settings))}
    before.append(Phase("load", first))
    if demand.encodes:
        peak, _ = shapes.peak(lambda: _encode(model, 1, demand.latent))
        before.append(Phase("latents", {**first, "activations": peak, **_in_ram(demand, device)}))
    texts = Phase("captions", {**first, "activations": one, "captions": captions, **_in_ram(demand, device)})
    packed = torch.bfloat16 if settings.precision(base.dtype) == "bf16" else torch.float32
    train = {**kept, "packed": model.speed.kept_bytes(model.denoiser, packed)}
    state, passing = _optimizer(parameters, settings)
    size = size_of(parameters.values())
    train |= {"lora": size, "optimizer": state, "ema": 0 if settings.ema is None else size, "captions": captions}
    train |= _in_ram(demand, device)
    activations, gradients = _step_peak(shapes, settings, demand, row, bool(trained))
    train["activations and gradients"] = max(activations, gradients + passing)
    return [*before, texts, Phase("train", train)]


def _before(base: Base, settings: Train, device: torch.device, on: torch.device | None) -> list[Phase]:
    """The drawing of prior pictures, where there are any: by the whole base, one at a time."""
    if settings.prior is None:
        return []
    shapes = _Shapes(base, device, on)
    weights = shapes.weights()
    shapes.materialize()
    peak = _draw_peak(shapes, 1, base.size_px)
    return [Phase("prior", {**weights, "activations": peak})]


def _in_ram(demand: Demand, device: torch.device) -> dict[str, int]:
    """Cached latents and masks, which stay in RAM where a GPU trains."""
    return {"latents": demand.cached, "masks": demand.masks} if device.type == "cpu" else {}


def _encode(model: ModelFamily, count: int, latent: tuple[int, int, int]) -> None:
    factor = model.pipeline.vae_scale_factor
    model.encode_images(torch.zeros(count, 3, *(side * factor for side in latent[1:])))


def _name_of(model: ModelFamily, part: nn.Module) -> str:
    return next(str(name) for name, other in model.pipeline.components.items() if other is part)


def _learns(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _add_lora(model: ModelFamily, settings: Train) -> dict[str, nn.Parameter]:
    """The run's own LoRA on networks without weights: its size does not depend on how it is initialised."""
    with torch.device("meta"):
        types.add_lora(model, settings.model_copy(update={"init": "gaussian"}))
        if settings.pivotal is not None:
            pivotal.outline(model.pipeline, settings.pivotal)
    model.denoiser.train()
    if settings.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    return {name: p for part in model.parts() for name, p in _named(model, part) if p.requires_grad}


def _named(model: ModelFamily, part: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    component = _name_of(model, part)
    return ((f"{component}.{name}", parameter) for name, parameter in part.named_parameters())


def _weights_kept(model: ModelFamily, weights: dict[str, int], trained: set[str], demand: Demand) -> dict[str, int]:
    """Frozen weights that stay once captions and latents are cached."""
    kept = {_name_of(model, model.denoiser), *trained, *(["vae"] if demand.images else [])}
    return {name: size for name, size in weights.items() if name in kept}


def _optimizer(parameters: Mapping[str, nn.Parameter], settings: Train) -> tuple[int, int]:
    build = choices.pick(choices.OPTIMIZERS, settings.optimizer)
    at_zero = {name: "lora_B" in name for name in parameters}
    return optimizer_cost(
        lambda some: build([{"params": some, "lr": settings.learning_rate}], settings),
        [p.shape for name, p in parameters.items() if not at_zero[name]],
        [p.shape for name, p in parameters.items() if at_zero[name]],
    )


def state_bytes(model: ModelFamily, settings: Train) -> int:
    """What is in RAM while a checkpoint is written beside a card: optimizer, average, and twice the LoRA.

    The LoRA's file and the state that training goes on from have a copy each.

    Args:
        model: Without weights; gets the LoRA.
        settings: The training section.
    """
    parameters = _add_lora(model, settings)
    size, average = size_of(parameters.values()), settings.ema is not None
    return size * (2 + average) + _optimizer(parameters, settings)[0]


def _blank_tokens(model: ModelFamily, count: int) -> dict[str, Tensor]:
    return {
        name: torch.zeros((count, model.context_tokens[name]), dtype=torch.long, device=model.device)
        for name in model.text_encoders()
    }


def _step_peak(
    shapes: _Shapes, settings: Train, demand: Demand, row: Conditioning, encode_texts: bool
) -> tuple[int, int]:
    """Peak of forward and backward passes, and the gradients left when the optimizer steps, bytes.

    `row` is one text's conditioning. Of many passes the worst finds the gradients of those before.
    """
    model, size = shapes.model, settings.batch_size
    kind = settings.precision(model.base.dtype)

    def conditioning_of() -> Conditioning:
        if not (encode_texts or demand.texts):
            return {name: value.new_zeros((size, *value.shape[1:])) for name, value in row.items()}
        with torch.set_grad_enabled(encode_texts), _autocast(shapes.device, kind):
            return model.encode_tokens(_blank_tokens(model, size))

    def micro_step() -> None:
        conditioning = conditioning_of()
        latents = torch.zeros(size, *demand.latent, device=shapes.device)
        if demand.images:
            _encode(model, 1, demand.latent)  # one by one
        noise, timesteps = torch.zeros_like(latents), torch.zeros(size, dtype=torch.long, device=shapes.device)
        with _autocast(shapes.device, kind):
            predicted = model.predict((latents + noise).to(model.dtype), timesteps, conditioning)
        torch.autograd.backward(nn.functional.mse_loss(predicted.float(), noise))

    def step() -> int:
        parameters = [p for part in model.parts() for p in part.parameters()]
        if settings.accumulation > 1 or settings.prior is not None:
            for parameter in (p for p in parameters if p.requires_grad):
                parameter.grad = torch.zeros_like(parameter)
        micro_step()
        return size_of(p.grad for p in parameters if p.grad is not None)

    peak, gradients = shapes.peak(step, gradients=True)
    return peak, gradients


def _autocast(device: torch.device, kind: str) -> AbstractContextManager[Any]:
    return nullcontext() if kind == "no" else torch.autocast(device.type, DTYPES[kind])


def encode_phase(version: Version, base: Base, device: torch.device, on: torch.device | None = None) -> Phase:
    """Memory of the stage `encode`: the VAE and one picture in it; arguments as of `predict`."""
    side = version.fit.size_px or base.size_px
    shapes = _Shapes(base.model_copy(update={"dtype": version.encode.dtype}), device, on)
    vae = shapes.weights()["vae"]
    shapes.materialize()
    peak, _ = shapes.peak(lambda: shapes.model.encode_images(torch.zeros(1, 3, side, side)))
    return Phase("encode", {"vae": vae, "activations": peak})


def draw_phase(sample: Sample, side: int, base: Base, device: torch.device, on: torch.device | None = None) -> Phase:
    """Memory of the stage `sample`: denoising twice a picture (guidance), then decoding, hires fix and tiles included.

    Args:
        sample: Its settings.
        side: Of a picture, px.
        base: Only its configs are read.
        device: Where it is drawn.
        on: As of `predict`.
    """
    shapes = _Shapes(base, device, on)
    model, weights = shapes.model, shapes.weights()
    check_drawing(sample, type(model))
    side = last_side(sample, side, model.resolution_multiple)
    shapes.materialize()
    part = tile_side(base, side) if sample.decode == "tiled" else None
    peak = _draw_peak(shapes, sample.batch_size, side, None if sample.decode == "whole" else 1, part)
    return Phase("draw", {**weights, "packed": model.speed.kept_bytes(model.denoiser), "activations": peak})


def _draw_peak(shapes: _Shapes, pictures: int, side: int, decoded: int | None = None, part: int | None = None) -> int:
    """Bytes beside the weights that drawing square pictures needs.

    Args:
        shapes: The base.
        pictures: How many are denoised at once.
        side: Theirs, px.
        decoded: How many are decoded at once; None = all.
        part: Side of the tiles in which they are, px; None = whole.
    """
    model, device = shapes.model, shapes.device
    latent, tile = (latent_shape(model, long, long) for long in (side, part or side))

    def denoise() -> None:
        latents = torch.zeros(2 * pictures, *latent, dtype=model.dtype, device=device)
        steps = torch.zeros(2 * pictures, dtype=torch.long, device=device)
        model.predict(latents, steps, model.encode_tokens(_blank_tokens(model, 2 * pictures)))

    def decode() -> None:
        vae = model.pipeline.vae
        with model.vae_in_safe_type():
            vae.decode(torch.zeros(decoded or pictures, *tile, dtype=vae.dtype, device=device))

    # pictures, and tiles that overlap by a quarter of each side, wait to be put together: at most fp32
    waiting = 3 * side * side * 4 * ((pictures if decoded else 0) + (2 if part else 0))
    return max(shapes.peak(denoise)[0], shapes.peak(decode)[0] + waiting)
