"""Tokenizers on the world's vocabulary that still read any English."""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, CLIPTokenizer

# Words of prompts that no caption may have: the tokenizers know them.
EXTRA_WORDS = (
    "captain avatar pixel art style portrait of a the an in on with and small close up left right side view "
    "shiny glossy wet reflective bad anatomy poorly drawn ugly eyes lowres blurry quality best photo picture"
)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # BERT's

SPOKEN = ("on", "in", "the", "small", "close", "up", "left", "right", "side", "eyes")  # those that captions do have


@dataclass(frozen=True)
class Wording:
    """How a caption varies from draw to draw, as shares: what it leaves out, and what it has that says nothing."""

    caption_dropout: float  # captions that say nothing: half of them empty, half foreign words
    tag_dropout: float  # attributes left out, of captions that say something
    foreign_words: float  # captions with foreign words before them

    def of(self, caption: str, rng: random.Random) -> str:
        """One wording of a caption. Half of them say everything; the other half lose twice the share of attributes."""
        if rng.random() < self.caption_dropout:
            return foreign_words(rng, 1, 20) if rng.random() < 0.5 else ""
        style, *tags = caption.split(", ")
        if rng.random() < 0.5:
            tags = [tag for tag in tags if rng.random() >= 2 * self.tag_dropout]
        before = [foreign_words(rng, 1, 2)] if rng.random() < self.foreign_words else []
        return ", ".join([*before, style, *tags])


def clip_tokenizer(captions: Sequence[str], folder: Path) -> CLIPTokenizer:
    """A byte-level BPE tokenizer with CLIP's rules, trained on the captions.

    Every byte is in the vocabulary, so that any text can be read; the world's words are one token each.
    The trainer breaks ties by its tokens' numbers and numbers those it finds in a hash map's order: naming
    them all beforehand is what makes the same captions give the same tokenizer.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = [f"{byte}</w>" for byte in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        end_of_word_suffix="</w>",
        special_tokens=[*alphabet, *endings],
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
        for line in (folder / "merges.txt").read_text("utf-8").split("\n")
        if line and not line.startswith("#version")
    ]
    tokens = [*alphabet, *endings, *["".join(merge) for merge in merges]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77, pad_token=tokens[-1])
    (folder / "merges.txt").unlink()
    (folder / "vocab.json").unlink()
    tokenizer.save_pretrained(folder)
    return tokenizer


def foreign_words(rng: random.Random, least: int, most: int) -> str:
    """Words that no caption has: of `EXTRA_WORDS`, or made of random letters as many a trigger is.

    Some of them are said of eyes, as in negative prompts.
    """
    known = [word for word in EXTRA_WORDS.split() if word not in SPOKEN]
    found = ""
    for _ in range(rng.randint(least, most)):
        made = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 8)))
        found += f"{rng.choice((rng.choice(known), made))}{rng.choice((' ', ', ', ' eyes, '))}"
    return found.removesuffix(" eyes, ").strip(" ,")


def _clip_pattern() -> Regex:
    return Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def bert_tokenizer(captions: Sequence[str], folder: Path) -> BertTokenizer:
    """A WordPiece tokenizer for BLIP, with `[DEC]` as the decoder's first token.

    Its letters are named beforehand for the reason given at `clip_tokenizer`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted({letter for caption in (*captions, EXTRA_WORDS) for letter in caption.lower() if letter != " "})
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(
        [*captions, EXTRA_WORDS],
        vocab_size=1200,
        min_frequency=1,
        special_tokens=[*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)],
        show_progress=False,
    )
    learner.save_model(str(folder))
    tokenizer = BertTokenizer.from_pretrained(folder, model_max_length=77)
    (folder / "vocab.txt").unlink()
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer
