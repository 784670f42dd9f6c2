"""The interface of a model family, and what families of diffusers' pipelines share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from sdlora import choices, cpu
from sdlora.config.params import Base
from sdlora.config.train import Train
from sdlora.errors import DataError, MissingError, ParamsError
from sdlora.models.loading import (
    check_class,
    from_file,
    from_pretrained,
    quieten,
    revision_option,
    scheduler_file,
    weights_dtype,
)
from sdlora.models.names import KohyaForm
from sdlora.models.objective import Epsilon, Objective, Velocity, objective_of
from sdlora.speed import Speed
from sdlora.tensors import DTYPES
from sdlora.weights import BASE, VAE, refuse_others

Conditioning = dict[str, Tensor]
Tokens = dict[str, Tensor]
#: What a pipeline's networks are for.
KINDS = ("denoiser", "vae", "text_encoders")


class ModelFamily:
    """One base model: how to load it, encode pictures and prompts, predict, and draw; and its LoRA's names.

    A family is a subclass that names its pipelines and fills in `encode_tokens` and `predict`; `docs/families.md`
    shows two. Latents are (C, h, w) everywhere: a family whose denoiser takes packed ones packs them in `predict`.
    """

    text2img: Any
    img2img: Any
    #: What the pipeline is told when it is loaded from a folder or the hub.
    load_options: ClassVar[dict[str, Any]] = {}
    #: What the pipelines are told when they draw, so that drawing agrees with training.
    draw_options: ClassVar[dict[str, Any]] = {}
    #: The network of the pipeline that is trained.
    denoiser_name: ClassVar[str] = "unet"
    #: Tokens a prompt is cut or padded to, by each text encoder's name, in the pipeline's order.
    context_tokens: ClassVar[Mapping[str, int]] = {"text_encoder": 77}
    #: What the base can have been trained for; its scheduler's config says which.
    objectives: ClassVar[tuple[type[Objective], ...]] = (Epsilon, Velocity)
    #: Ends of the names of the layers that carry a LoRA, by entry of choices.TARGETS, where they are the family's own.
    targets: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Text encoders that can carry a LoRA, and those in which pivotal tuning can learn a token.
    lora_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    pivotal_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    #: Names in kohya's format; None where only diffusers' file is written.
    kohya: ClassVar[KohyaForm | None] = None
    #: The hub's tag of models for this family.
    hub_tag: ClassVar[str | None] = None
    #: Whether this family's pictures overflow its VAE in fp16 (the VAE's own `force_upcast` decides then).
    fp16_vae_overflows: ClassVar[bool] = False
    #: The networks of the model that the family is named for, as published: class and settings, by name in the
    #: pipeline; its scheduler; and the native side of a square picture, px. Without them the memory of a single-file
    #: checkpoint cannot be predicted.
    published: ClassVar[Mapping[str, tuple[str, dict[str, Any]]]] = {}
    published_scheduler: ClassVar[tuple[str, dict[str, Any]] | None] = None
    published_size_px: ClassVar[int] = 512

    def __init__(self, base: Base, device: torch.device, pipeline: Any = None, kinds: Sequence[str] = KINDS) -> None:
        """Load a base, or those of its networks that are named, or take over a pipeline that is already there."""
        self.base, self.device, self.dtype = base, device, weights_dtype(base, device)
        self.speed: Speed = cpu.speed_up(device)
        loading = pipeline is None
        if loading:
            self.speed.before_loading()
            if self.dtype != DTYPES[base.dtype]:
                print(f"no GPU: weights are kept in fp32, not {base.dtype}", flush=True)
            pipeline = self._load(kinds).to(device)
        self.pipeline: Any = pipeline
        self.pipeline.set_progress_bar_config(disable=True)
        for part in self.parts():
            part.requires_grad_(False).eval()
        if "denoiser" in kinds:
            self.speed.built(self.denoiser, loading)

    def load(self, *kinds: str) -> None:
        """Add networks that were left out when the base was loaded."""
        self.speed.before_loading()
        found = self._load(kinds).to(self.device)
        for name in self.names_of(kinds):
            if (network := getattr(found, name, None)) is not None:
                setattr(self.pipeline, name, network.requires_grad_(False).eval())
        if "denoiser" in kinds:
            self.speed.built(self.denoiser, True)

    @property
    def denoiser(self) -> nn.Module:
        """The network that is trained."""
        network: nn.Module = getattr(self.pipeline, self.denoiser_name)
        return network

    @cached_property
    def denoiser_config(self) -> Any:
        """The denoiser's settings, whether it is loaded or not."""
        if getattr(self.pipeline, self.denoiser_name, None) is not None:
            return self.denoiser.config
        import diffusers

        options = revision_option(self.base.model, self.base.revision)
        kind = getattr(diffusers, self.text2img.load_config(self.base.model, **options)[self.denoiser_name][1])
        return FrozenDict(kind.load_config(self.base.model, subfolder=self.denoiser_name, **options))

    @property
    def resolution_multiple(self) -> int:
        """What the sides of pictures must be multiples of, px."""
        return 8

    def text_encoders(self) -> dict[str, nn.Module]:
        """The text encoders that are loaded, by their name in the pipeline."""
        found = {name: getattr(self.pipeline, name, None) for name in self.context_tokens}
        return {name: network for name, network in found.items() if network is not None}

    def lora_text_encoders(self) -> dict[str, nn.Module]:
        """Those of them that can carry a LoRA."""
        return {name: network for name, network in self.text_encoders().items() if name in self.lora_encoders}

    def parts(self) -> list[nn.Module]:
        """The networks of the pipeline, all frozen."""
        return [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)]

    def names_of(self, kinds: Iterable[str]) -> set[str]:
        """The networks of some kinds, by their name in the pipeline."""
        of_kind = {"denoiser": {self.denoiser_name}, "vae": {"vae"}, "text_encoders": {*self.context_tokens}}
        return {name for kind in kinds for name in of_kind[kind]}

    def _load(self, kinds: Sequence[str] = KINDS) -> Any:
        """The base's pipeline with the networks of some kinds; the files of the others are neither read nor fetched."""
        options: dict[str, Any] = dict.fromkeys(self.names_of(KINDS) - self.names_of(kinds))
        options["dtype"] = self.dtype
        if self.base.vae is not None and "vae" in kinds:
            from diffusers import AutoencoderKL

            own = self.base.vae, self.base.vae_revision
            options["vae"] = from_pretrained(AutoencoderKL, VAE, *own, self.device, dtype=self.dtype)
        if self.base.model.endswith(".safetensors"):
            if not Path(self.base.model).is_file():
                raise MissingError(f"the base model: there is no file {self.base.model!r}")
            refuse_others(self.base.model)
            return from_file(self.text2img, self.base.model, options)
        options |= self._load_options()
        return from_pretrained(self.text2img, BASE, self.base.model, self.base.revision, self.device, **options)

    def _load_options(self) -> dict[str, Any]:
        return self.load_options

    @classmethod
    def outline(cls, base: Base, device: torch.device) -> Self:
        """The model of a base as shapes alone: networks on the meta device, nothing read but configs.

        A single-file checkpoint carries no configs: those its family was published with are taken.

        Raises:
            MissingError: If the configs are neither local nor reachable.
        """
        from sdlora.models import architectures

        names, _ = cls.text2img._get_signature_keys(cls.text2img)
        networks, scheduler = architectures.outline(cls, base)
        options = {**dict.fromkeys(names), **cls.load_options, **networks, "scheduler": scheduler}
        return cls(base, device, cls.text2img(**options))

    def objective(self, settings: Train) -> Objective:
        """What the base was trained for, as its scheduler's config says.

        Raises:
            DataError: If the config does not say one of the family's objectives, or lacks what it needs.
            ParamsError: If the settings ask for what the objective does not have.
        """
        return objective_of(self.objectives, self.pipeline.scheduler.config, scheduler_file(self.base.model), settings)

    def check(self, settings: Train) -> None:
        """Refuse a training that this base cannot have; nothing but its configs is needed.

        Raises:
            DataError: If the base's scheduler does not say its objective.
            ParamsError: If the settings ask for what the family or its objective does not have.
        """
        check_class(type(self), settings, self.base.family, getattr(self.pipeline, self.denoiser_name, None))
        if self.pipeline.scheduler is not None:
            self.objective(settings)

    def check_size(self, height: int, width: int) -> None:
        """Refuse pictures of a size that the denoiser does not take.

        Args:
            height: Of the latents.
            width: Of the latents.

        Raises:
            DataError: Names the size and what it must be a multiple of.
        """
        cell, multiple = self.pipeline.vae_scale_factor, self.resolution_multiple
        if height * cell % multiple or width * cell % multiple:
            raise DataError(
                f"a picture is fitted to {width * cell} x {height * cell} px, but family {self.base.family} takes "
                f"multiples of {multiple} px: set fit.size_px and fit.bucket_step_px to such"
            )

    @classmethod
    def sampler(cls, name: str) -> Any:
        """The class of diffusers' schedulers that an entry of choices.SCHEDULERS names.

        Raises:
            ParamsError: If it does not step through what the family predicts; names those that do.
        """
        found = choices.pick(choices.SCHEDULERS, name)
        if not cls.draws_with(found):
            fitting = [entry for entry in choices.SCHEDULERS if cls.draws_with(choices.pick(choices.SCHEDULERS, entry))]
            raise ParamsError(
                f"sample.scheduler is {name}, which cannot draw with a base that learns "
                f"{' or '.join(kind.name for kind in cls.objectives)}; choices: {', '.join(fitting)}"
            )
        return found

    @classmethod
    def draws_with(cls, scheduler: Any) -> bool:
        """Whether a class of diffusers' schedulers steps through what the family predicts."""
        return all(kind.draws_with(scheduler) for kind in cls.objectives)

    @classmethod
    def layers(cls, entry: str) -> tuple[str, ...]:
        """Ends of the names of the layers that carry a LoRA, by entry of choices.TARGETS."""
        return tuple(cls.targets.get(entry) or choices.pick(choices.TARGETS, entry))

    def naming(self) -> dict[str, int]:
        """What of the denoiser's config the names in kohya's format depend on: fields of `lora.metadata.About`."""
        names = ("cross_attention_dim", "layers_per_block")
        return {name: self.denoiser_config[name] for name in names if name in self.denoiser_config}

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of the VAE; one that overflows in fp16 computes in fp32.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            Mean and standard deviation, each (B, C, h, w) fp32: the mean less the VAE's shift (where it has one),
            both times its scaling factor.
        """
        vae = self.pipeline.vae
        with self.vae_in_safe_type():
            posterior = vae.encode(images.to(self.device, vae.dtype)).latent_dist
        mean, scale, shift = posterior.mean.float(), vae.config.scaling_factor, vae.config.shift_factor
        return (mean if shift is None else mean - shift) * scale, posterior.std.float() * scale

    @contextmanager
    def vae_in_safe_type(self) -> Iterator[None]:
        """For a while, a VAE that overflows in fp16 has fp32 weights; diffusers draws with the fp16 ones afterwards."""
        vae = self.pipeline.vae
        if not (self.fp16_vae_overflows and vae.dtype == torch.float16 and vae.config.force_upcast):
            yield
            return
        kept = [(m, name, p) for m in vae.modules() for name, p in m._parameters.items() if p is not None]
        try:
            for module, name, parameter in kept:
                module._parameters[name] = nn.Parameter(parameter.float(), requires_grad=False)
            yield
        finally:
            for module, name, parameter in kept:
                module._parameters[name] = parameter

    def _tokenizer(self, encoder: str) -> Any:
        return getattr(self.pipeline, encoder.replace("text_encoder", "tokenizer"))

    def tokenize(self, prompts: list[str]) -> Tokens:
        """The prompts' token numbers: (B, `context_tokens`) on the device, by the name of each loaded text encoder.

        Where the pipeline knows textual inversion, tokens of several vectors are written out.
        """
        convert = getattr(self.pipeline, "maybe_convert_prompt", lambda prompts, tokenizer: prompts)
        found = {}
        for name in self.text_encoders():
            tokenizer = self._tokenizer(name)
            options = {"padding": "max_length", "max_length": self.context_tokens[name], "truncation": True}
            found[name] = tokenizer(convert(prompts, tokenizer), **options, return_tensors="pt").input_ids
        return {name: ids.to(self.device) for name, ids in found.items()}

    def token_limits(self) -> dict[str, int]:
        """Tokens of a prompt that each loaded text encoder reads, beside those that mark begin and end."""
        names = self.text_encoders()
        return {n: self.context_tokens[n] - self._tokenizer(n).num_special_tokens_to_add() for n in names}

    def token_counts(self, prompts: list[str], encoder: str = "text_encoder") -> list[int]:
        """Tokens of each prompt, without those that mark begin and end; none is cut off."""
        tokenizer = self._tokenizer(encoder)
        marks = tokenizer.num_special_tokens_to_add()
        return [len(ids) - marks for ids in tokenizer(prompts, truncation=False).input_ids]

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Conditioning:
        """What the denoiser is told about tokenized prompts; gradients reach the text encoders."""
        raise NotImplementedError

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """What the denoiser is told about each prompt: tensors whose first dimension is the prompt."""
        return self.encode_tokens(self.tokenize(prompts))

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output for noisy latents (B, C, h, w); same shape.

        Beside what `encode_prompts` gives, the conditioning may hold `sizes` (B, 6): original height and
        width, top and left of the crop, target height and width, px; families without a use for it ignore it.
        """
        raise NotImplementedError

    def keep_only(self, *kinds: str) -> None:
        """Give back the memory of the networks that are not named: `denoiser`, `vae`, `text_encoders`."""
        kept = self.names_of(kinds)
        for name, network in self.pipeline.components.items():
            if isinstance(network, nn.Module) and name not in kept:
                setattr(self.pipeline, name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def prompting(self, prompts: Sequence[str], guidance_scale: float, negative_prompt: str | None) -> dict[str, Any]:
        """What both pipelines are told about prompts.

        Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) as diffusers has it: 1 is none, and the
        negative prompt stands for no prompt. A family that guides otherwise says so here.

        Args:
            prompts: One a picture.
            guidance_scale: 1 or more.
            negative_prompt: For all pictures; None leaves it to the pipeline.
        """
        negative = {} if negative_prompt is None else {"negative_prompt": [negative_prompt] * len(prompts)}
        return {"prompt": [*prompts], **negative, "guidance_scale": guidance_scale, **self.draw_options}

    def img2img_pipeline(self) -> Any:
        """An image-to-image pipeline on the same networks.

        diffusers' own `from_pipe` would cast them all to one type, and with them what is kept in fp32, as parts of T5.
        """
        parts, options = self.img2img._get_signature_keys(self.img2img)
        own = {name: value for name, value in self.pipeline.components.items() if name in parts}
        said = {name: self.pipeline.config[name] for name in options if name in self.pipeline.config}
        pipeline = self.img2img(**own, **said)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def denoiser_name_of(pipeline: Any) -> str:
    """What one of diffusers' pipelines calls the network that carries a LoRA, as its LoRA loader has it."""
    return str(getattr(pipeline, "unet_name", None) or pipeline.transformer_name)


def first_loaded(base: Base, settings: Train) -> tuple[str, ...]:
    """Networks that are there while latents and captions are encoded: all, where the base draws or is a single file.

    The denoiser, by far the largest, comes when the others are gone.
    """
    whole = settings.prior is not None or base.model.endswith(".safetensors")
    return KINDS if whole else ("vae", "text_encoders")


def load_model(base: Base, device: str | None = None, kinds: Sequence[str] = KINDS) -> ModelFamily:
    """Load a base with its family's model, on CUDA where there is one.

    Args:
        base: The base.
        device: Where to.
        kinds: Which of its networks are needed: the others take no memory.

    Raises:
        MissingError: If the weights are neither local nor reachable.
    """
    quieten()
    where = torch.device(device or default_device())
    model: ModelFamily = choices.pick(choices.FAMILIES, base.family)(base, where, kinds=kinds)
    return model


def default_device() -> str:
    """CUDA where torch finds it."""
    return "cuda" if torch.cuda.is_available() else "cpu"
