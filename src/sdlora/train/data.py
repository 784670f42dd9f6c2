"""What draws need, made once before the first step: latents, masks and text embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

from sdlora.adapters import Adapter
from sdlora.params import Base, Encode
from sdlora.store import STORE
from sdlora.train import latents, texts
from sdlora.train.captions import all_captions, check_lengths
from sdlora.train.dataset import Example
from sdlora.train.latents import LatentsOf
from sdlora.train.texts import ConditioningOf
from sdlora.train_section import Train


@dataclass(frozen=True)
class Data:
    """Examples, and where their latents and their captions' conditioning come from."""

    examples: list[Example]
    latents_of: LatentsOf
    conditioning_of: ConditioningOf


def prepare_data(
    settings: Train,
    base: Base,
    adapter: Adapter,
    examples: list[Example],
    encode: Encode,
    identity: str,
    trigger: str,
    also: Sequence[str] = (),
) -> Data:
    """Fill in what the caches hold, and give back the memory of every network that is not needed again.

    Args:
        settings: Which caches, which mask, how captions vary.
        base: The base of the adapter.
        adapter: Loses its VAE and text encoders, unless `none` needs them at each draw.
        examples: With latents if `cache_latents` is `disk` (or a test made them).
        encode: How other latents are made.
        identity: Which weights the base has.
        trigger: Must not be cut off.
        also: Captions beside those of the examples.
    """
    kept = ["unet"]
    latents_of: LatentsOf = latents.cached
    if not all(example.mean for example in examples):
        encoder = latents.encoder_for(base, encode, adapter)
        if settings.cache_latents == "none":
            latents_of = latents.live(encoder)
            kept += ["vae"] if encoder is adapter else []
        else:
            examples = latents.encoded(examples, encoder)
    examples = latents.with_masks(examples, settings.mask, adapter.pipeline.vae_scale_factor, settings.mask_floor)
    captions = sorted({*also, *(text for example in examples for text in example.text)})
    check_lengths(adapter, captions, trigger)
    conditioning_of = _conditioning(settings, adapter, all_captions(captions, settings), identity)
    kept += ["text_encoder"] if settings.text_cache == "none" else []
    adapter.keep_only(*kept)
    return Data(examples, latents_of, conditioning_of)


def _conditioning(settings: Train, adapter: Adapter, captions: list[str], identity: str) -> ConditioningOf:
    if settings.text_cache == "none":
        return texts.live(adapter)
    if settings.text_cache == "ram":
        return texts.cached(adapter, captions)
    # the weights of another VAE (after the +) do not change what a text encoder says
    return texts.on_disk(adapter, captions, identity.partition(" + ")[0], STORE / "text")
