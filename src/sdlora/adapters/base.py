"""The interface of a model adapter, and what the Stable Diffusion families share."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlora import choices
from sdlora.errors import MissingError
from sdlora.params import Base

Conditioning = dict[str, Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Adapter:
    """One base model: how to load it, encode pictures and prompts, predict, and draw.

    A family is a subclass that names its pipelines and fills in `encode_prompts` and `predict`.
    """

    text2img: Any
    img2img: Any

    def __init__(self, base: Base, device: torch.device) -> None:
        self.base, self.device = base, device
        self.dtype = DTYPES[base.dtype] if device.type != "cpu" else torch.float32
        if self.dtype != DTYPES[base.dtype]:
            print(f"no GPU: weights are kept in fp32, not {base.dtype}", flush=True)
        self.pipeline: Any = self._load().to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        for part in self.parts():
            part.requires_grad_(False).eval()

    def parts(self) -> list[torch.nn.Module]:
        """The networks of the pipeline, all frozen."""
        return [self.pipeline.unet, self.pipeline.vae, self.pipeline.text_encoder]

    def _load(self) -> Any:
        options: dict[str, Any] = {"dtype": self.dtype}
        if self.base.vae is not None:
            from diffusers import AutoencoderKL

            options["vae"] = _from_pretrained(AutoencoderKL, self.base.vae, self.base.vae_revision, dtype=self.dtype)
        if self.base.model.endswith(".safetensors"):
            if not Path(self.base.model).is_file():
                raise MissingError(f"the base model: there is no file {self.base.model!r}")
            return self.text2img.from_single_file(self.base.model, **options)
        if self.base.family == "sd":
            options |= {"safety_checker": None, "requires_safety_checker": False}
        return _from_pretrained(self.text2img, self.base.model, self.base.revision, **options)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of the VAE.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            Mean and standard deviation, each (B, C, h, w) fp32, times the VAE's scaling factor.
        """
        vae = self.pipeline.vae
        posterior = vae.encode(images.to(self.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """What the UNet is told about each prompt: tensors whose first dimension is the prompt."""
        raise NotImplementedError

    def token_counts(self, prompts: list[str]) -> list[int]:
        """Tokens of each prompt, without those that mark begin and end; none is cut off."""
        return [len(ids) - 2 for ids in self.pipeline.tokenizer(prompts, truncation=False).input_ids]

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output for noisy latents (B, C, h, w); same shape.

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


def _from_pretrained(kind: Any, model: str, revision: str | None, **options: Any) -> Any:
    if revision is not None and not Path(model).exists():
        options["revision"] = revision
    try:
        return kind.from_pretrained(model, **options)
    except (OSError, ValueError) as error:
        if Path(model).exists():
            raise
        raise MissingError(
            f"the base model {model!r} is neither a local folder nor reachable on the hub. On a machine with network: "
            f"`hf download {model}`, or set bases.<name>.model to a folder or a .safetensors file "
            f"({str(error).splitlines()[0]})"
        ) from None


def load_adapter(base: Base, device: str | None = None) -> Adapter:
    """Load a base with its family's adapter, on CUDA where there is one.

    Raises:
        MissingError: If the weights are neither local nor reachable.
    """
    quieten()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter: Adapter = choices.pick(choices.FAMILIES, base.family)(base, torch.device(device))
    return adapter


def quieten() -> None:
    """Keep the libraries' own bars and hints out of the stages' progress."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
