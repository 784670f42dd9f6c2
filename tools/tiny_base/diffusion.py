"""The tiny Stable Diffusion: UNet and CLIP text encoder trained together on the VAE's latents."""

import copy
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.tiny_base import accessories, loop, readers, text
from tools.tiny_base.loop import Part
from tools.tiny_base.recipe import BaseRecipe

TEXT_WIDTH = 192
MOST = 1000.0  # of a timestep's weight: it holds from 922 on
PREVIEW_EVERY = 1000  # steps between pipelines to look at, in the work folder's preview/
# SD 1.5's but for `beta_end`, which is 0.012 there: of 1,024 latents at an SNR of 0.005 enough shows through to tell
# where a figure stands, so that training never needed the words for it, and drawing put figures where the noise had one
# (Lin et al., arXiv 2305.08891). At 0.02 the SNR ends at 0.0002.
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def build_unet(latent_size: int) -> UNet2DConditionModel:
    """A fresh UNet with SD 1.5's blocks in small."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        block_out_channels=(96, 160, 256),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers' name: this is the number of heads
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A fresh CLIP text encoder: 4 layers of 192."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=77,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids (N, 77) as the pipeline makes them."""
    ids: Tensor = tokenizer(
        list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def save(networks: nn.ModuleDict, vae: AutoencoderKL, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write everything as a plain fp16 `StableDiffusionPipeline` folder."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=networks["text_encoder"],
        tokenizer=tokenizer,
        unet=networks["unet"],
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out)
    for name in ("unet", "text_encoder", "vae"):
        folder = out / name
        module = type(getattr(pipeline, name)).from_pretrained(folder, torch_dtype=torch.float16, use_safetensors=True)
        module.save_pretrained(folder)
    declare_float32(out / "text_encoder" / "config.json")
    readers.open_to_both(out)
    # as in SD 1.5's own file: other schedulers made from this one must not clip latents
    config = out / "scheduler" / "scheduler_config.json"
    values = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**values, "clip_sample": False}, indent=2) + "\n", encoding="utf-8")


def declare_float32(config: Path) -> None:
    """Have transformers load fp16 weights as fp32, as diffusers does, so that the parts fit together."""
    values = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**values, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Examples:
    """Posterior means of the VAE (N, 4, h, w) fp16, not scaled, and what they show."""

    latents: Tensor
    captions: Sequence[str]

    def learnt(self) -> "Examples":
        """Those that the UNet learns from: figures without hat or glasses, and every second critter, which are easy.

        Where it learnt hats and glasses, too, 8,000 steps left them smeared over most of the faces that had some.
        """
        bare = [number for number, caption in enumerate(self.captions) if accessories.is_bare(caption)]
        critters = [number for number in bare if self.captions[number].startswith("critter")]
        left_out = set(critters[1::2])
        kept = [number for number in bare if number not in left_out]
        return Examples(self.latents[kept], [self.captions[number] for number in kept])


@dataclass(frozen=True)
class Noising:
    """The forward process, and what a timestep's loss weighs.

    (min(SNR, gamma) + 1) / SNR, which is min-SNR's weight of a velocity (Hang et al., arXiv 2303.09556) in epsilons, at
    most `MOST`. It is in the noisiest timesteps that colours, sizes and places are decided: with min-SNR's weight of an
    epsilon they were 3 % of the loss, and after 9,000 steps a third of the latents' variance was open at 999. With at
    most 40, 2,700 steps moved a figure by a tenth of what "left" and "right" ask; with 400 to 1000, 1,500 more moved it
    by all of it.
    """

    scheduler: DDPMScheduler
    weights: Tensor  # by timestep

    @classmethod
    def of(cls, recipe: BaseRecipe) -> "Noising":
        """As the recipe says."""
        scheduler = DDPMScheduler(**SCHEDULE)
        snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
        return cls(scheduler, ((snr.clamp(max=recipe.min_snr_gamma) + 1) / snr).clamp(max=MOST))

    def draw(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, the noise in them and their timesteps."""
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(clean),), generator=generator)
        return self.scheduler.add_noise(clean, noise, timesteps), noise, timesteps


def build_networks(tokenizer: CLIPTokenizer, latent_size: int) -> nn.ModuleDict:
    """Fresh UNet and text encoder, for training on a CPU or a card."""
    unet = build_unet(latent_size)
    unet.set_attn_processor(AttnProcessor())  # faster than SDPA for bf16 heads this small on a CPU
    text_encoder = build_text_encoder(tokenizer)
    text_encoder.set_attn_implementation("eager")  # SDPA's backward pass on a CPU makes a step 7 % slower
    return nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).train()


def compiled(networks: nn.ModuleDict) -> nn.ModuleDict:
    """The same networks, same parameters, through torch.compile: a CPU's step takes three quarters of the time."""
    found = nn.ModuleDict()
    for name, network in networks.items():
        found[name] = torch.compile(network, dynamic=False)  # type: ignore[assignment]
    return found


def weighted_error(
    networks: nn.ModuleDict, tokens: Tensor, drawn: tuple[Tensor, Tensor, Tensor], weights: Tensor
) -> Tensor:
    """Mean over a batch of each picture's squared error times its timestep's weight.

    Args:
        networks: UNet and text encoder.
        tokens: (B, 77) of the captions.
        drawn: Noisy latents, their noise, their timesteps, as `Noising.draw` gives them.
        weights: By timestep.
    """
    device = tokens.device
    noisy, noise, timesteps = (one.to(device) for one in drawn)
    with loop.autocast(device.type):
        context = networks["text_encoder"](tokens).last_hidden_state
        predicted = networks["unet"](noisy, timesteps, context).sample.float()
    per_picture = (predicted - noise).square().mean(dim=(1, 2, 3))
    weighted: Tensor = per_picture * weights.to(device)[timesteps]
    return weighted.mean()


def train(
    plain: Examples,
    larger: Examples,
    vae: AutoencoderKL,
    recipe: BaseRecipe,
    work: Path,
    out: Path,
    device: str,
    parts: int,
) -> None:
    """Train UNet and text encoder (epsilon, min-SNR, captions that vary) and save the pipeline.

    Every fourth batch is of the larger pictures, from the first step on: hires fix draws at their size.
    """
    seed = recipe.seed + 3
    torch.manual_seed(seed)
    tokenizer = text.clip_tokenizer(plain.captions, work / "clip-tokenizer")
    plain, larger = plain.learnt(), larger.learnt()
    networks = build_networks(tokenizer, plain.latents.shape[-1]).to(device)
    called = compiled(networks) if recipe.compiled and device == "cpu" else networks
    noising = Noising.of(recipe)
    wording = text.Wording(recipe.caption_dropout, recipe.tag_dropout, recipe.foreign_words)

    def loss_of(step: int, part: Part) -> Tensor:
        larger_ones = loop.sees_larger(step)
        examples, batch = (larger, recipe.as_long(recipe.unet_batch)) if larger_ones else (plain, recipe.unet_batch)
        index = part.of(loop.batch_indices(seed, step, batch, len(examples.latents)))
        rng = random.Random(f"words-{seed}-{step}-{part.number}")
        words = [wording.of(examples.captions[int(number)], rng) for number in index]
        clean = examples.latents[index].float() * vae.config.scaling_factor
        drawn = noising.draw(clean, loop.part_generator(seed, step, part))
        return weighted_error(called, token_ids(tokenizer, words).to(device), drawn, noising.weights)

    if called is not networks:  # two threads that compile at once wait for each other for ever
        with loop.one_thread_each(parts):
            for step in (0, loop.LARGER_EVERY - 1):  # both sizes
                loss_of(step, Part(0, parts)).backward()  # type: ignore[no-untyped-call]
        networks.zero_grad(set_to_none=True)

    def preview(step: int) -> None:
        if step % PREVIEW_EVERY == 0:
            # a copy: saving writes to a network's configuration, after which both threads would compile anew
            save(copy.deepcopy(networks), vae, tokenizer, work / "preview")

    loop.train(
        "diffusion",
        networks,
        loss_of,
        parts=parts,
        steps=recipe.unet_steps,
        peak_learning_rate=recipe.unet_learning_rate,
        ema_decay=recipe.unet_ema_decay,
        save_every=recipe.save_every,
        folder=work,
        on_save=preview,
    )
    save(networks, vae, tokenizer, out)
