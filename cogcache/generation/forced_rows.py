"""What a language half expects at each place of many captions behind one clip's video part.

The video part is run once, or read where it was kept; all captions go behind it in a few passes.
Imported where models run; it needs torch and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from cogcache.generation.decoder import can_decode
from cogcache.generation.prefixes import Prefixes, prefix_digest
from cogcache.generation.requests import Request, Statistics, laid_out
from cogcache.generation.teacher_forcing import log_probabilities
from cogcache.models import Family, PromptRow, left_padded, raised_products
from cogcache.settings import Generation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cogcache.generation.kv_cache import Prefix
    from cogcache.generation.prefix_files import KeptPrefixes


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


class ForcedRows:
    """Reads captions behind clips' video parts.

    Args:
        model: the language half.
        family: lays rows out.
        rows_at_once: most captions in a pass.
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

    @torch.inference_mode()
    def token_log_probabilities(self, captions: Sequence[Forced]) -> list[Tensor]:
        """Return the log probability of each token of captions, given the clip and all before it.

        Returns:
            For each caption float32 [its tokens], on the CPU.
        """
        found: list[Tensor | None] = [None] * len(captions)
        for numbers in self._sharing(captions):
            for first in range(0, len(numbers), self.rows_at_once):
                some = numbers[first : first + self.rows_at_once]
                for number, values in zip(
                    some, self._read([captions[n] for n in some]), strict=True
                ):
                    found[number] = values
        return [values for values in found if values is not None]

    @torch.inference_mode()
    def next_log_probabilities(self, captions: Sequence[Forced]) -> list[Tensor]:
        """Return the log probability of every token that may come first behind each prompt.

        Returns:
            For each float32 [V], on the CPU; the tokens of the captions are not looked at.
        """
        found = []
        for each in captions:
            [logits] = self._logits([Forced(each.row, each.clip, ())])
            found.append(torch.log_softmax(logits[-1].float(), dim=-1).cpu())
        return found

    def _sharing(self, captions: Sequence[Forced]) -> list[list[int]]:
        """Return the numbers of captions that have all up to the end of the video in common."""
        digests = {id(each.row): each for each in captions}
        found = {key: self._digest(each) for key, each in digests.items()}
        groups: dict[tuple[str, str], list[int]] = {}
        for number, each in enumerate(captions):
            groups.setdefault((each.clip, found[id(each.row)]), []).append(number)
        return [*groups.values()]

    def _digest(self, each: Forced) -> str:
        return prefix_digest(_request(each), self.family)

    def _read(self, captions: Sequence[Forced]) -> list[Tensor]:
        if not self._shares:
            return [
                _of_tokens(log_probabilities(self.model, self.family, each.row, each.tokens), each)
                for each in captions
            ]
        found = []
        for each, logits in zip(captions, self._logits(captions), strict=True):
            places = torch.log_softmax(logits[-len(each.tokens) - 1 :].float(), dim=-1)
            found.append(_of_tokens(places, each).cpu())
        return found

    def _logits(self, captions: Sequence[Forced]) -> list[Tensor]:
        """Return the logits of captions behind their common video part, right-aligned: [L, V]."""
        if not self._shares:
            return [log_probabilities(self.model, self.family, c.row, c.tokens) for c in captions]
        prefix = self._prefix(captions[0])
        positions = self._positions(captions)
        tails = [
            torch.cat((each.row.sequences["input_ids"][prefix.length :], _ids(each)))
            for each in captions
        ]
        width = max(len(tail) for tail in tails)
        ones = left_padded([torch.ones(len(tail)) for tail in tails], 0)
        before = torch.ones(len(tails), prefix.length, dtype=torch.long)
        device = self.model.device
        places = [pad(each[..., prefix.length :], (width - len(t), 0)) for each, t in zip(
            positions, tails, strict=True)]  # fmt: skip
        ids = left_padded(tails, self.family.pad_id).to(device)
        with raised_products(self.model, ids.numel()):
            output = self.model(
                input_ids=ids,
                attention_mask=torch.cat((before, ones), dim=1).to(device),
                position_ids=torch.cat(places, -2).to(device),
                past_key_values=prefix.for_rows(),
                use_cache=True,
                logits_to_keep=max(len(each.tokens) for each in captions) + 1,
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
        found = {
            key: laid_out(_with_tokens(each), self.family, self.model)[1]
            for key, each in longest.items()
        }
        return [found[id(each.row)][..., : each.row.length + len(each.tokens)] for each in captions]

    def _prefix(self, each: Forced) -> Prefix:
        tokens = self._digest(each)
        if not each.clip:  # words without a clip: a prompt's are the same for all captions
            if tokens not in self._words:
                self._words[tokens] = self._prefixes.of(_request(each))
            return self._words[tokens]
        if self._last is None or self._last[:2] != (each.clip, tokens):
            self._last = each.clip, tokens, self._prefixes.of(_request(each))
        return self._last[2]


def _request(each: Forced) -> Request:
    return Request(each.row, each.clip, 0, Generation())


def _ids(each: Forced) -> Tensor:
    return torch.tensor(list(each.tokens), dtype=torch.long)


def _with_tokens(each: Forced) -> Request:
    own = _ids(each)
    sequences = {
        name: torch.cat((values, own if name == "input_ids" else torch.zeros_like(own)))
        for name, values in each.row.sequences.items()
    }
    return Request(PromptRow(each.row.features, sequences), each.clip, 0, Generation())


def _of_tokens(places: Tensor, each: Forced) -> Tensor:
    """Take from log probabilities [L + 1, V] those of the caption's own tokens, [L]."""
    own = torch.tensor(list(each.tokens), dtype=torch.long, device=places.device)
    return places[: len(own)].gather(-1, own[:, None])[:, 0]
