"""Tokenizers on the world's vocabulary that still read any English."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, CLIPTokenizer

EXTRA_WORDS = (
    "captain avatar pixel art style portrait of a the an in on with and small close up left right side view "
    "shiny glossy wet reflective bad anatomy poorly drawn ugly eyes lowres blurry quality best photo picture"
)


def clip_tokenizer(captions: Sequence[str], folder: Path) -> CLIPTokenizer:
    """A byte-level BPE tokenizer with CLIP's rules, trained on the captions.

    Every byte is in the vocabulary, so that any text can be read; the world's words are one token each.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_clip_pattern(), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    learner.train_from_iterator([*captions, *[EXTRA_WORDS] * 50], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    learner.model.save(str(folder))
    merges = [
        tuple(line.split(" "))
        for line in (folder / "merges.txt").read_text("utf-8").splitlines()
        if line and not line.startswith("#version")
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *[f"{byte}</w>" for byte in alphabet], *["".join(merge) for merge in merges]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77, pad_token="<|endoftext|>")
    (folder / "merges.txt").unlink()
    (folder / "vocab.json").unlink()
    tokenizer.save_pretrained(folder)
    return tokenizer


def _clip_pattern() -> Regex:
    return Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def bert_tokenizer(captions: Sequence[str], folder: Path) -> BertTokenizer:
    """A WordPiece tokenizer for BLIP, with `[DEC]` as the decoder's first token."""
    folder.mkdir(parents=True, exist_ok=True)
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator([*captions, EXTRA_WORDS], vocab_size=1200, min_frequency=1, show_progress=False)
    learner.save_model(str(folder))
    tokenizer = BertTokenizer.from_pretrained(folder, model_max_length=77)
    (folder / "vocab.txt").unlink()
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer
