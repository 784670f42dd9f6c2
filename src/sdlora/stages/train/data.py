"""What draws need, made once before the first step: latents, masks and text embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

from sdlora.config.params import Base, Encode
from sdlora.config.train import Train
from sdlora.flow.store import STORE
from sdlora.models import ModelFamily
from sdlora.stages.train import latents, texts
from sdlora.stages.train.captions import all_captions, check_lengths
from sdlora.stages.train.dataset import Example
from sdlora.stages.train.latents import LatentsOf
from sdlora.stages.train.texts import ConditioningOf


@dataclass(frozen=True)
class Data:
    """Examples, and where their latents and their captions' conditioning come from."""

    examples: list[Example]
    latents_of: LatentsOf
    conditioning_of: ConditioningOf


def prepare_data(
    settings: Train,
    base: Base,
    model: ModelFamily,
    examples: list[Example],
    encode: Encode,
    identity: str,
    trigger: str,
    also: Sequence[str] = (),
) -> Data:
    """Fill in what the caches hold, and give back the memory of every network that is not needed again.

    The denoiser need not be there yet.

    Args:
        settings: Which caches, which mask, how captions vary.
        base: The base of the model.
        model: Loses its VAE and text encoders, unless `none` needs them at each draw.
        examples: With latents if `cache_latents` is `disk` (or a test made them).
        encode: How other latents are made.
        identity: Which weights the base has.
        trigger: Must not be cut off.
        also: Captions beside those of the examples.
    """
    kept = ["denoiser"]
    latents_of: LatentsOf = latents.cached
    if not all(example.mean for example in examples):
        encoder = latents.encoder_for(base, encode, model)
        if settings.cache_latents == "none":
            latents_of = latents.live(encoder)
            kept += ["vae"] if encoder is model else []
        else:
            examples = latents.encoded(examples, encoder)
    for example in examples:
        for height, width in latents.sizes_of(example, model.pipeline.vae_scale_factor):
            model.check_size(height, width)
    examples = latents.with_masks(examples, settings.mask, model.pipeline.vae_scale_factor, settings.mask_floor)
    captions = sorted({*also, *(text for example in examples for text in example.text)})
    check_lengths(model, captions, trigger)
    conditioning_of = _conditioning(settings, model, all_captions(captions, settings), identity)
    kept += ["text_encoders"] if settings.text_cache == "none" else []
    model.keep_only(*kept)
    return Data(examples, latents_of, conditioning_of)


def _conditioning(settings: Train, model: ModelFamily, captions: list[str], identity: str) -> ConditioningOf:
    if settings.text_cache == "none":
        return texts.live(model)
    if settings.text_cache == "ram":
        return texts.cached(model, captions)
    # the weights of another VAE (after the +) do not change what a text encoder says
    return texts.on_disk(model, captions, identity.partition(" + ")[0], STORE / "text")
