"""Measures how well a clip supports a caption, with the language half that reads both.

A caption's tokens are forced through the language half behind the clip's video part, behind those
of other clips, and without any clip. Nothing is generated. It cannot find an error that the model
itself does not see. Needs torch; import it only where models run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import torch
from torch import Tensor

from cogcache.errors import ConfigError
from cogcache.generation import Forced, ForcedRows
from cogcache.models import ClipTensors, Family, PromptRow
from cogcache.quality.texts import claims_of

SUPPORT_EPOCH: Final = 1
_LEAST_WORDS: Final = 3
_LEAST_DOUBT: Final = 0.1
"""Nats a token: a caption more certain than this without its clip can hardly gain from it."""
QUESTION: Final = 'Is this true of the video: "{claim}"? Answer with yes or no.'
_ANSWERS: Final = {"yes": ("Yes", "yes"), "no": ("No", "no")}


@dataclass(frozen=True, slots=True, eq=False)
class Claimed:
    """A caption of a clip whose tokens are forced through the model.

    Args:
        caption_key: of the caption.
        feature_key: of its clip.
        prompt: what was asked.
        text: what it says.
    """

    caption_key: str
    feature_key: str
    prompt: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class ReadBehind:
    """A caption that is read behind a clip, its own or another.

    Args:
        feature_key: of the clip.
        features: of the clip.
        caption: the caption.
    """

    feature_key: str
    features: ClipTensors
    caption: Claimed


@dataclass(frozen=True, slots=True, eq=False)
class Supported:
    """The log probabilities of a caption's tokens, without what ends it; each float32 [L].

    Args:
        tokens: the tokens.
        own: behind its clip.
        blind: behind no clip.
    """

    tokens: Sequence[int]
    own: Tensor
    blind: Tensor

    @property
    def gain(self) -> float:
        """Mean log probability of the tokens with the clip, minus without it, in nats."""
        return float((self.own - self.blind).mean())

    @property
    def grounding(self) -> float:
        """`gain` as a share of what there was to gain: 1 where the clip makes the caption certain.

        Some captions are easier to guess than others: as a share, they can be compared.
        """
        return _gained(float(self.own.mean()), float(self.blind.mean()))

    def swap(self, others: Sequence[float]) -> float:
        """How far the caption's mean log probability is above that behind other clips, as a share.

        Args:
            others: the means behind these.
        """
        return _gained(float(self.own.mean()), sum(others) / len(others))


def _gained(own: float, before: float) -> float:
    """Return how much of the way from a mean log probability to 0 another has gone."""
    return (own - before) / max(-before, _LEAST_DOUBT)


class Supporter:
    """Forces captions through a language half.

    Args:
        rows: reads captions with the language half.
        layout: of prompts.
    """

    def __init__(self, rows: ForcedRows, layout: str) -> None:
        self.rows, self.family, self.layout = rows, rows.family, layout
        self._blind: dict[tuple[str, str], Tensor] = {}
        self._tokens: dict[tuple[str, str], list[int]] = {}

    def tokens(self, features: ClipTensors, caption: Claimed) -> list[int]:
        """Return a caption's tokens, without the one that ends it."""
        key = caption.prompt, caption.text
        if key not in self._tokens:  # the same behind every clip
            ids = self.family.answer_ids(features, caption.prompt, self.layout, caption.text)
            self._tokens[key] = ids[:-1] if ids and ids[-1] in self.family.stop_ids else ids
        return self._tokens[key]

    def behind(self, read: Sequence[ReadBehind]) -> list[tuple[list[int], Tensor]]:
        """Return the tokens of captions and their log probabilities, each behind a clip.

        The clip need not be theirs. What belongs to one clip should stand together.
        """
        tokens = [self.tokens(each.features, each.caption) for each in read]
        rows: dict[tuple[str, str], PromptRow] = {}
        for each in read:
            prompt = each.caption.prompt
            if (each.feature_key, prompt) not in rows:
                row = self.family.row(each.features, prompt, self.layout)
                rows[each.feature_key, prompt] = row
        forced = [
            Forced(rows[each.feature_key, each.caption.prompt], each.feature_key, own)
            for each, own in zip(read, tokens, strict=True)
        ]
        values = self.rows.token_log_probabilities(forced)
        return list(zip(tokens, values, strict=True))

    def blind(self, features: ClipTensors, captions: Sequence[Claimed]) -> list[Tensor]:
        """Return the log probabilities of captions' tokens behind their prompts alone.

        Equal captions are forced once.
        """
        new = {(c.prompt, c.text): c for c in captions if (c.prompt, c.text) not in self._blind}
        prompts = {c.prompt for c in new.values()}
        rows = {prompt: self.family.text_row(prompt, self.layout) for prompt in prompts}
        forced = [Forced(rows[c.prompt], "", self.tokens(features, c)) for c in new.values()]
        values = self.rows.token_log_probabilities(forced)
        self._blind |= dict(zip(new, values, strict=True))
        return [self._blind[each.prompt, each.text] for each in captions]

    def affirmed(self, read: Sequence[ReadBehind]) -> list[list[tuple[str, float]]]:
        """Return the claims of captions, each with the probability of yes against no.

        Raises:
            ConfigError: the model's tokenizer begins yes and no alike.
        """
        if not read:
            return []
        begin, answers = self._answers(read[0].features)
        claims = [claims_of(each.caption.text) for each in read]
        asked = [
            Forced(self._question(each, claim), each.feature_key, begin)
            for each, its in zip(read, claims, strict=True)
            for claim in its
        ]
        shares = iter(
            [_share(values, answers) for values in self.rows.next_log_probabilities(asked)]
        )
        return [[(claim, next(shares)) for claim in its] for its in claims]

    def _question(self, each: ReadBehind, claim: str) -> PromptRow:
        text = QUESTION.format(claim=self.family.plain(claim))
        return self.family.row(each.features, text, self.layout)

    def _answers(self, features: ClipTensors) -> tuple[list[int], dict[str, list[int]]]:
        """Return what all answers begin with, such as a blank, and the tokens that then differ."""
        ids = {
            (name, word): self.family.answer_ids(features, "?", self.layout, word)
            for name, words in _ANSWERS.items()
            for word in words
        }
        begin = _common([*ids.values()])
        found = {
            name: sorted({its[len(begin)] for (of, _), its in ids.items() if of == name})
            for name in _ANSWERS
        }
        if {*found["yes"]} & {*found["no"]}:
            problem = "the model's tokenizer begins yes and no with one token"
            raise ConfigError(problem, "leave `questions` out: cogcache score grounding swap")
        return begin, found


def _common(some: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens that all begin with."""
    alike = takewhile(lambda tokens: len({*tokens}) == 1, zip(*some, strict=False))
    return [tokens[0] for tokens in alike]


def _share(values: Tensor, answers: dict[str, list[int]]) -> float:
    yes, no = (float(torch.logsumexp(values[answers[name]], 0)) for name in ("yes", "no"))
    return 1 / (1 + math.exp(no - yes)) if no - yes < 700 else 0.0


def least_supported(
    family: Family, supported: Supported, most: int = _LEAST_WORDS
) -> list[tuple[str, float, int]]:
    """Return the words that the clip supports least, worst first.

    Returns:
        The word, the sum over its tokens of the log probability with the clip minus without it,
        and the place of its first letter in the caption as the tokens spell it.
    """
    gains = (supported.own - supported.blind).tolist()
    words: list[tuple[str, float, int]] = []
    text, start, gain = "", 0, 0.0
    for count, value in enumerate(gains, 1):
        longer = family.text_of(supported.tokens[:count])
        begins = longer[len(text) :][:1].isspace() and text
        if begins:
            words.append((text[start:], gain, start))
            start, gain = (
                len(text) + len(longer[len(text) :]) - len(longer[len(text) :].lstrip()),
                0.0,
            )
        text, gain = longer, gain + value
    if text[start:]:
        words.append((text[start:], gain, start))
    doubtful = [word for word in words if word[1] < 0]
    return sorted(doubtful, key=lambda word: word[1])[:most]
