"""The tokenizer of `tiny`: whole words of its scenes and numbers, bytes for all else."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from cogcache.models.cogvlm2.layout import question_text
from cogcache.selftest.shapes import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    DIRECTIONS,
    QUESTIONS,
    SHAPES,
    SPEEDS,
)

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
NUM_INDICES = 64
"""Frame indices that are one token each, as in the published tokenizer."""


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer; any text can be encoded with it, and is decoded to itself.

    As in Llama 3, a word that is in the vocabulary is taken whole (`ignore_merges`). There are
    no merges, so every other word becomes its bytes.
    """
    specials = [BOS, EOS, PAD]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(_words() - set(letters))
    vocabulary = {token: index for index, token in enumerate(specials + letters + words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return tokenizer


def _words() -> set[str]:
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    texts = [question_text(query, "chat") for asked in QUESTIONS.values() for query in asked]
    texts += [question_text("", "vqa"), " move moves on a background shapes"]
    texts += [f" {word} {word.capitalize()} {word}s {word}es" for word in _answers()]
    texts += [str(index) for index in range(NUM_INDICES)]
    return {word for text in texts for word, _ in split(text)}


def _answers() -> list[str]:
    return [*COLORS, *BACKGROUNDS, *SHAPES, *DIRECTIONS, *SPEEDS, *COUNTS]


def padded_size(tokenizer: Tokenizer) -> int:
    """Return the vocabulary's size, rounded up to a multiple of 64."""
    return -(-tokenizer.get_vocab_size() // 64) * 64
