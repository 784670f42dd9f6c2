"""Begin a base from another one: its VAE, its UNet, its text encoder, the words that both know, and its BLIP.

The VAE goes on from the other's, too, so that its latents stay near those that the UNet knows.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import BertTokenizer, BlipForConditionalGeneration, CLIPTextModel, CLIPTokenizer

from tools.tiny_base import diffusion, loop, text


def begin_vae(base: Path, work: Path) -> None:
    """Write what the part `vae` goes on from: `vae.begun.safetensors` (fp16, step 0)."""
    autoencoder = AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float32, use_safetensors=True)
    loop.write_begun(work / "vae.begun.safetensors", [p.detach() for p in autoencoder.parameters()], 0)


def begin_blip(base: Path, captions: Sequence[str], work: Path) -> bool:
    """Write what the part `blip` goes on from, `blip.begun.safetensors` (fp16, step 0), if the words are the same.

    Args:
        base: A tiny BLIP's folder.
        captions: Of the world's pictures.
        work: Gets the file.
    """
    tokenizer = text.bert_tokenizer(captions, work / "blip-tokenizer")
    if BertTokenizer.from_pretrained(base).get_vocab() != tokenizer.get_vocab():
        return False
    model = BlipForConditionalGeneration.from_pretrained(base, torch_dtype=torch.float32, use_safetensors=True)
    loop.write_begun(work / "blip.begun.safetensors", [p.detach() for p in model.parameters()], 0)
    return True


def begin_from(base: Path, captions: Sequence[str], seed: int, work: Path) -> int:
    """Write what the part `diffusion` goes on from.

    Args:
        base: A pipeline's folder, of the same networks.
        captions: Of the world's pictures: the new tokenizer is made of them.
        seed: Of the embeddings of words that the base does not know.
        work: Gets `diffusion.begun.safetensors` (fp16, step 0).

    Returns:
        How many tokens of the new tokenizer the base knows.
    """
    torch.manual_seed(seed)
    tokenizer = text.clip_tokenizer(captions, work / "clip-tokenizer")
    unet = UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.float32, use_safetensors=True)
    networks = diffusion.build_networks(tokenizer, unet.config.sample_size)
    networks["unet"].load_state_dict(unet.state_dict())
    known = CLIPTokenizer.from_pretrained(base / "tokenizer").get_vocab()
    theirs = CLIPTextModel.from_pretrained(
        base / "text_encoder", torch_dtype=torch.float32, use_safetensors=True
    ).state_dict()
    places = {place: known[token] for token, place in tokenizer.get_vocab().items() if token in known}
    networks["text_encoder"].load_state_dict(_words(networks["text_encoder"].state_dict(), theirs, places))
    weights = [p.detach() for p in networks.parameters() if p.requires_grad]
    loop.write_begun(work / "diffusion.begun.safetensors", weights, 0)
    return len(places)


def _words(ours: dict[str, Tensor], theirs: dict[str, Tensor], places: dict[int, int]) -> dict[str, Tensor]:
    """Their text encoder, with our own embedding where a token is new."""
    (name,) = (name for name in theirs if name.endswith("token_embedding.weight"))
    tokens = ours[name].clone()
    tokens[list(places)] = theirs[name][list(places.values())]
    return {**theirs, name: tokens}
