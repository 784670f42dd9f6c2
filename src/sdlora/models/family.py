"""The interface of a model family, and what the Stable Diffusion families share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sdlora import choices, cpu
from sdlora.config.params import Base
from sdlora.errors import MissingError, download_command
from sdlora.speed import Speed

Conditioning = dict[str, Tensor]
Tokens = dict[str, Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ModelFamily:
    """One base model: how to load it, encode pictures and prompts, predict, and draw.

    A family is a subclass that names its pipelines and fills in `tokenize`, `encode_tokens` and
    `predict`; `docs/families.md` shows one.
    """

    text2img: Any
    img2img: Any
    #: Networks of the pipeline that turn a prompt into conditioning, in the pipeline's order.
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    #: Tokens a prompt is cut or padded to.
    context_tokens: ClassVar[int] = 77
    #: What the pipeline is told when it is loaded from a folder or the hub.
    load_options: ClassVar[dict[str, Any]] = {}
    #: Whether this family's pictures overflow its VAE in fp16 (the VAE's own `force_upcast` decides then).
    fp16_vae_overflows: ClassVar[bool] = False

    def __init__(self, base: Base, device: torch.device, pipeline: Any = None) -> None:
        """Load a base, or take over a pipeline that is already there."""
        self.base, self.device, self.dtype = base, device, weights_dtype(base, device)
        self.speed: Speed = cpu.speed_up(device)
        loading = pipeline is None
        if loading:
            self.speed.before_loading()
            if self.dtype != DTYPES[base.dtype]:
                print(f"no GPU: weights are kept in fp32, not {base.dtype}", flush=True)
            pipeline = self._load().to(device)
        self.pipeline: Any = pipeline
        self.pipeline.set_progress_bar_config(disable=True)
        for part in self.parts():
            part.requires_grad_(False).eval()
        self.speed.built(self.denoiser, loading)

    @property
    def denoiser(self) -> nn.Module:
        """The network that is trained."""
        network: nn.Module = self.pipeline.unet
        return network

    def text_encoders(self) -> dict[str, nn.Module]:
        """The text encoders that are loaded, by their name in the pipeline."""
        found = {name: getattr(self.pipeline, name, None) for name in self.text_encoder_names}
        return {name: network for name, network in found.items() if network is not None}

    def parts(self) -> list[nn.Module]:
        """The networks of the pipeline, all frozen."""
        return [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)]

    def _load(self) -> Any:
        options: dict[str, Any] = {"dtype": self.dtype}
        if self.base.vae is not None:
            from diffusers import AutoencoderKL

            options["vae"] = _from_pretrained(AutoencoderKL, self.base.vae, self.base.vae_revision, dtype=self.dtype)
        if self.base.model.endswith(".safetensors"):
            if not Path(self.base.model).is_file():
                raise MissingError(f"the base model: there is no file {self.base.model!r}")
            return self.text2img.from_single_file(self.base.model, **options)
        return _from_pretrained(self.text2img, self.base.model, self.base.revision, **options, **self.load_options)

    @classmethod
    def outline(cls, base: Base, device: torch.device) -> Self:
        """The model of a base as shapes alone: networks on the meta device, nothing read but configs.

        A single-file checkpoint carries no configs: those its family was published with are taken.

        Raises:
            MissingError: If the configs are neither local nor reachable.
        """
        from sdlora.models import architectures

        names, _ = cls.text2img._get_signature_keys(cls.text2img)
        networks = architectures.outline(cls.text2img, base)
        return cls(base, device, cls.text2img(**{**dict.fromkeys(names), **cls.load_options, **networks}))

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of the VAE.

        A VAE that overflows in fp16 is put into fp32 first and stays there.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            Mean and standard deviation, each (B, C, h, w) fp32, times the VAE's scaling factor.
        """
        vae = self.pipeline.vae
        if self.fp16_vae_overflows and vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.to(torch.float32)
        posterior = vae.encode(images.to(self.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def tokenize(self, prompts: list[str]) -> Tokens:
        """The prompts' token numbers: (B, context_tokens) on the device, by the text encoder's name."""
        raise NotImplementedError

    def token_counts(self, prompts: list[str]) -> list[int]:
        """Tokens of each prompt, without those that mark begin and end; none is cut off."""
        return [len(ids) - 2 for ids in self.pipeline.tokenizer(prompts, truncation=False).input_ids]

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

    def keep_only(self, *names: str) -> None:
        """Give back the memory of the networks that are not named: `unet`, `vae`, `text_encoder`."""
        kept = {*names, *(["text_encoder_2"] if "text_encoder" in names else [])}
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            if name not in kept and getattr(self.pipeline, name, None) is not None:
                setattr(self.pipeline, name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def img2img_pipeline(self) -> Any:
        """An image-to-image pipeline on the same networks."""
        pipeline = self.img2img.from_pipe(self.pipeline, dtype=self.dtype)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def weights_dtype(base: Base, device: torch.device) -> torch.dtype:
    """Type of the frozen weights: the base's own, but fp32 for fp16 on a CPU, which cannot compute in it."""
    if device.type == "cpu" and base.dtype == "fp16":
        return torch.float32
    return DTYPES[base.dtype]


def _from_pretrained(kind: Any, model: str, revision: str | None, **options: Any) -> Any:
    try:
        return kind.from_pretrained(model, **options, **revision_option(model, revision))
    except (OSError, ValueError) as error:
        raise unreachable(model, revision, error) from None


def revision_option(model: str, revision: str | None) -> dict[str, str]:
    """The revision as an option for the hub; local files have none."""
    return {} if revision is None or Path(model).exists() else {"revision": revision}


def unreachable(model: str, revision: str | None, error: Exception) -> Exception:
    """What a user does when a base cannot be read; the error itself where the base is local."""
    if Path(model).exists():
        return error
    return MissingError(
        f"the base model {model!r} is neither a local folder nor reachable on the hub. On a machine with network: "
        f"`{download_command(model, revision)}`, or set bases.<name>.model to a folder or a .safetensors file "
        f"({str(error).splitlines()[0]})"
    )


def load_model(base: Base, device: str | None = None) -> ModelFamily:
    """Load a base with its family's model, on CUDA where there is one.

    Raises:
        MissingError: If the weights are neither local nor reachable.
    """
    quieten()
    where = torch.device(device or default_device())
    model: ModelFamily = choices.pick(choices.FAMILIES, base.family)(base, where)
    return model


def default_device() -> str:
    """CUDA where torch finds it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def quieten() -> None:
    """Keep the libraries' own bars and hints out of the stages' progress."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
