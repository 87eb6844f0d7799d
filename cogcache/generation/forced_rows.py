"""What a language half expects at each place of many captions behind one clip's video part.

The video part is run once, or read where it was kept; all captions go behind it in a few passes.
Imported where models run; it needs torch and transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from cogcache.generation.decoder import can_decode
from cogcache.generation.kv_cache import rows_behind
from cogcache.generation.prefixes import Prefixes, prefix_digest
from cogcache.generation.requests import Request, Statistics, laid_out
from cogcache.generation.teacher_forcing import log_probabilities
from cogcache.models import Family, PromptRow, left_padded, raised_products
from cogcache.settings import Generation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cogcache.generation.kv_cache import Prefix
    from cogcache.generation.prefix_files import KeptPrefixes

MOST_TOKENS: Final = 1024
"""In a pass, behind the video parts: more of them make a pass no quicker for each token."""
MOST_LAYOUTS: Final = 64
"""Rows laid out in different ways whose places are remembered; clips of one length have one."""
MOST_PLACES: Final = 1024
"""Numbers of a tensor up to which it may tell where features stand."""
ROWS_FOR_ONE: Final = 4
"""Most captions in a pass, for each row that there is room for in a step of decoding."""


@dataclass(frozen=True, slots=True, eq=False)
class Forced:
    """A caption that a model is to read behind a prompt.

    Args:
        row: clip and prompt, laid out.
        clip: what rows of one clip have in common, and no others; "" for words without a clip.
        tokens: of the caption.
    """

    row: PromptRow
    clip: str
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """A caption behind its video part.

    Args:
        number: among all captions.
        num_tokens: of the caption.
        prefix: its video part.
        tail: the tokens behind that, [L].
        positions: of these, [..., 1, L].
        length: L.
    """

    number: int
    num_tokens: int
    prefix: Prefix
    tail: Tensor
    positions: Tensor
    length: int

    @classmethod
    def of(cls, number: int, each: Forced, prefix: Prefix, positions: Tensor) -> _Row:
        """Cut what stands behind the video part from all tokens and all positions."""
        start = prefix.length
        tail = torch.cat((each.row.sequences["input_ids"][start:], _ids(each)))
        own = positions[..., start:]
        return cls(number, len(each.tokens), prefix, tail, own, tail.shape[0])


class ForcedRows:
    """Reads captions behind clips' video parts.

    Args:
        model: the language half.
        family: lays rows out.
        rows_at_once: most clips in a pass; of short captions, up to four times as many.
        kept: where clips' video parts are kept between runs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        rows_at_once: int = 16,
        kept: KeptPrefixes | None = None,
    ) -> None:
        self.model, self.family, self.rows_at_once = model, family, rows_at_once
        self.statistics = Statistics()
        self._prefixes = Prefixes(model, family, self.statistics, kept)
        self._shares = can_decode(model)
        self._last: tuple[str, str, Prefix] | None = None
        self._words: dict[str, Prefix] = {}
        self._places: dict[str, Tensor] = {}

    @torch.inference_mode()
    def token_log_probabilities(self, captions: Sequence[Forced]) -> list[Tensor]:
        """Return the log probability of each token of captions, given the clip and all before it.

        Returns:
            For each caption float32 [its tokens], on the CPU.
        """
        found: dict[int, Tensor] = {}
        for numbers, logits in self._passes(captions):
            for number, each in zip(numbers, logits, strict=True):
                found[number] = _of_tokens(each, captions[number]).cpu()
        return [found[number] for number in range(len(captions))]

    @torch.inference_mode()
    def next_log_probabilities(self, captions: Sequence[Forced]) -> list[Tensor]:
        """Return the log probability of every token that may come next, behind each one's tokens.

        Returns:
            For each float32 [V], on the CPU.
        """
        found: dict[int, Tensor] = {}
        for numbers, logits in self._passes(captions):
            for number, each in zip(numbers, logits, strict=True):
                found[number] = torch.log_softmax(each[-1].float(), dim=-1).cpu()
        return [found[number] for number in range(len(captions))]

    def _passes(self, captions: Sequence[Forced]) -> Iterator[tuple[list[int], Sequence[Tensor]]]:
        """Yield the numbers of the captions of each pass, and their logits: right-aligned [L, V].

        A pass has rows of as many clips as there is room for in a step of decoding.
        """
        if not self._shares:
            for number, each in enumerate(captions):
                yield [number], [log_probabilities(self.model, self.family, each.row, each.tokens)]
            return
        rows: list[_Row] = []
        for tokens, numbers in self._sharing(captions):
            prefix = self._prefix(captions[numbers[0]], tokens)
            positions = self._positions([captions[number] for number in numbers])
            for number, position in zip(numbers, positions, strict=True):
                row = _Row.of(number, captions[number], prefix, position)
                if rows and not self._has_room(rows, row):
                    yield [each.number for each in rows], self._logits(rows)
                    rows = []
                rows.append(row)
        if rows:
            yield [each.number for each in rows], self._logits(rows)

    def _has_room(self, rows: Sequence[_Row], another: _Row) -> bool:
        num_clips = len({id(each.prefix) for each in rows} | {id(another.prefix)})
        longest = max(another.length, *(each.length for each in rows))
        return (
            num_clips <= self.rows_at_once
            and len(rows) < max(self.rows_at_once, MOST_TOKENS // longest)
            and len(rows) < ROWS_FOR_ONE * self.rows_at_once
        )

    def _sharing(self, captions: Sequence[Forced]) -> list[tuple[str, list[int]]]:
        """Return captions that have all up to the end of the video in common.

        Returns:
            The digest of what they share, and their numbers.
        """
        rows = {id(each.row): each for each in captions}
        found = {key: self._digest(each) for key, each in rows.items()}
        groups: dict[tuple[str, str], list[int]] = {}
        for number, each in enumerate(captions):
            groups.setdefault((each.clip, found[id(each.row)]), []).append(number)
        return [(tokens, numbers) for (_, tokens), numbers in groups.items()]

    def _digest(self, each: Forced) -> str:
        return prefix_digest(_request(each), self.family)

    def _logits(self, rows: Sequence[_Row]) -> list[Tensor]:
        """Return the logits of captions behind their video parts, right-aligned: [L, V]."""
        tails = [each.tail for each in rows]
        width, start = max(each.length for each in rows), max(each.prefix.length for each in rows)
        columns = torch.arange(start)
        before = torch.stack([columns >= start - each.prefix.length for each in rows]).long()
        ones = left_padded([torch.ones(each.length) for each in rows], 0)
        device = self.model.device
        places = [pad(each.positions, (width - each.length, 0)) for each in rows]
        ids = left_padded(tails, self.family.pad_id).to(device)
        with raised_products(self.model, ids.numel()):
            output = self.model(
                input_ids=ids,
                attention_mask=torch.cat((before, ones), dim=1).to(device),
                position_ids=torch.cat(places, -2).to(device),
                past_key_values=rows_behind([each.prefix for each in rows]),
                use_cache=True,
                logits_to_keep=max(each.num_tokens for each in rows) + 1,
            )
        return list(output.logits)

    def _positions(self, captions: Sequence[Forced]) -> list[Tensor]:
        """Return where the tokens of rows stand, [..., 1, L] each.

        Captions of one prompt are laid out once, with the longest: what comes later in a row does
        not move what stands before it.
        """
        longest: dict[int, Forced] = {}
        for each in captions:
            known = longest.get(id(each.row))
            if known is None or len(each.tokens) > len(known.tokens):
                longest[id(each.row)] = each
        found = {key: self._placed(each) for key, each in longest.items()}
        return [found[id(each.row)][..., : each.row.length + len(each.tokens)] for each in captions]

    def _placed(self, longest: Forced) -> Tensor:
        """Return where the tokens of a row stand; asked for once for all clips laid out alike."""
        alike, length = layout_digest(longest.row), longest.row.length + len(longest.tokens)
        known = self._places.get(alike)
        if known is None or known.shape[-1] < length:
            if len(self._places) >= MOST_LAYOUTS:
                self._places.clear()
            known = laid_out(_with_tokens(longest), self.family, self.model)[1]
            self._places[alike] = known
        return known

    def _prefix(self, each: Forced, tokens: str) -> Prefix:
        if not each.clip:  # words without a clip: a prompt's are the same for all captions
            if tokens not in self._words:
                self._words[tokens] = self._prefixes.of(_request(each))
            return self._words[tokens]
        if self._last is None or self._last[:2] != (each.clip, tokens):
            self._last = each.clip, tokens, self._prefixes.of(_request(each))
        return self._last[2]


def _request(each: Forced) -> Request:
    return Request(each.row, each.clip, 0, Generation())


def layout_digest(row: PromptRow) -> str:
    """Return the SHA-256 of all that the places of a row's tokens may depend on.

    Of features proper that is their shape; what tells their grid or their times is small, or whole
    numbers, and counts as it is.
    """
    found = hashlib.sha256(repr(sorted(row.features.texts.items())).encode())
    for kind, tensors in (("row", row.sequences), ("features", row.features.tensors)):
        for name, each in sorted(tensors.items()):
            found.update(f"{kind} {name} {each.dtype} {tuple(each.shape)}".encode())
            if not each.is_floating_point() or each.numel() <= MOST_PLACES:
                found.update(each.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _ids(each: Forced) -> Tensor:
    return torch.tensor(list(each.tokens), dtype=torch.long)


def _with_tokens(each: Forced) -> Request:
    own = _ids(each)
    sequences = {
        name: torch.cat((values, own if name == "input_ids" else torch.zeros_like(own)))
        for name, values in each.row.sequences.items()
    }
    return Request(PromptRow(each.row.features, sequences), each.clip, 0, Generation())


def _of_tokens(logits: Tensor, each: Forced) -> Tensor:
    """Take from logits, or log probabilities, right-aligned [L, V], those of the own tokens."""
    own = torch.tensor(list(each.tokens), dtype=torch.long, device=logits.device)
    places = torch.log_softmax(logits[-len(own) - 1 :][: len(own)].float(), dim=-1)
    return places.gather(-1, own[:, None])[:, 0]
