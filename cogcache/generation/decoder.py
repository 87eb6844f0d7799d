"""Rows to tokens by a loop of our own: one prefill a clip, and a batch that rows leave and join.

    a clip's video part, once → its prompts behind it, together → the batch, a token a step;
    a row that ends makes room for the next

What comes out is what `generate` gives row by row: each row has its own positions, random
numbers and limits. Imported where captions are made; it needs torch and transformers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cogcache.generation.kv_cache import Prefix, RowCache, SlotCache, keeps_all_keys
from cogcache.generation.prefix_files import KeptPrefixes
from cogcache.generation.prefixes import Prefixes, cut_of, forward, prefix_digest, sharing
from cogcache.generation.requests import (
    Finished,
    NoRoom,
    Request,
    Statistics,
    context_of,
    laid_out,
    last_position,
    room_for,
)
from cogcache.generation.token_choice import Chooser, choose_all
from cogcache.models import Family, left_padded
from cogcache.system import give_back, running_out


def can_decode(model: PreTrainedModel) -> bool:
    """Say whether rows of this model can share prefixes and change places."""
    return keeps_all_keys(model.config)


@dataclass(eq=False)
class _Live:
    """A row that is being decoded, or waits for its place."""

    request: Request
    chooser: Chooser
    position: Tensor
    """What its new tokens count on from. int64 [..., 1, 1]."""
    limit: int
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    cache: RowCache | None = None
    """Until it has a place."""
    done: bool = False

    def has_ended(self, family: Family) -> bool:
        """Say whether the caption has come to its end, before any limit."""
        return self.tokens[-1] in family.stop_ids or self.request.stops(family, self.tokens)


class Decoder:
    """Decodes requests, a clip's with one another and many clips' together.

    Args:
        model: the language half, or the whole model; see `can_decode`.
        family: lays rows out.
        rows_at_once: most rows in a step; halved when memory runs out.
        kept: where clips' video parts are kept between runs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        rows_at_once: int,
        kept: KeptPrefixes | None = None,
    ) -> None:
        self.model, self.family, self.rows_at_once = model, family, rows_at_once
        self.context = context_of(model)
        self.statistics = Statistics()
        self.prefixes = Prefixes(model, family, self.statistics, kept)
        self.again: deque[list[Request]] = deque()
        self.waiting: deque[_Live] = deque()
        self.live: list[_Live] = []
        self.slots = _no_slots(model)
        self.newest: tuple[Request, Prefix] | None = None
        """Of the last prefill, until the next step: a caption of one token has never a place."""

    def submit(self, request: Request) -> None:
        """Put in a request between others, while `run` is under way."""
        self.again.append([request])

    @torch.inference_mode()
    def run(self, groups: Iterable[Sequence[Request]]) -> Iterator[Finished]:
        """Yield each request with its tokens, as they get done.

        Args:
            groups: requests about one clip each, taken up as places get free; an empty one says
                that there are no more just now.
        """
        incoming = iter(groups)
        while True:
            while len(self._unfinished()) < self.rows_at_once:
                group = self.again.popleft() if self.again else next(incoming, None)
                if not group:
                    break
                yield from self._guarded(self._prefill, list(group))
            if not self._unfinished():
                return
            yield from self._guarded(self._step)

    def _unfinished(self) -> list[_Live]:
        return [row for row in self.live if not row.done] + list(self.waiting)

    # ---- memory -----------------------------------------------------------------------------

    def _guarded(self, work: Any, *arguments: Any) -> list[Finished]:
        """Do a piece of work; where memory runs out, begin all rows anew, half as many at once."""
        with running_out():
            done: list[Finished] = work(*arguments)
            return done
        self._begin_anew(*arguments)
        return []

    def _begin_anew(self, group: Sequence[Request] = ()) -> None:
        """Let go of all rows; half as many at once then, or one prompt of a clip after another.

        Raises:
            NoRoom: it was a single one.
        """
        in_hand = [row.request for row in self._unfinished()] + list(group)
        self.live, self.waiting, self.slots = [], deque(), _no_slots(self.model)
        self.newest = None
        if self.rows_at_once > 1:
            self.again.extend(list(each) for _, each in groupby(in_hand, lambda r: r.clip))
            self.rows_at_once //= 2
            self.statistics.note_halved(self.rows_at_once)
        elif len(in_hand) > 1:
            self.again.extend([request] for request in in_hand)
        else:
            others = [request for each in self.again for request in each]
            self.again.clear()
            raise NoRoom(in_hand + others)
        give_back()

    # ---- prefill ----------------------------------------------------------------------------

    def _prefill(self, group: list[Request]) -> list[Finished]:
        """Run the video part of a clip once and its prompts behind it."""
        started = time.perf_counter()
        rows: list[_Live] = []
        for requests in sharing(group, self.family):
            prefix = self._prefix(requests[0])
            for first in range(0, len(requests), self.rows_at_once):
                rows += self._behind(prefix, requests[first : first + self.rows_at_once])
        passed = time.perf_counter() - started
        self.statistics.prefill_s += passed
        for row in rows:
            row.seconds = passed / len(rows)
        self.waiting.extend(row for row in rows if not row.done)
        return [self._finished(row) for row in rows if row.done]

    def _prefix(self, request: Request) -> Prefix:
        prefix = self._at_hand(request) or self.prefixes.of(request)
        self.newest = request, prefix
        return prefix

    def _at_hand(self, request: Request) -> Prefix | None:
        """Find the video part among the rows in hand: a second try needs no second prefill."""
        tokens = prefix_digest(request, self.family)

        def same(other: Request) -> bool:
            return other.clip == request.clip and prefix_digest(other, self.family) == tokens

        if self.newest and same(self.newest[0]):
            return self.newest[1]
        for row in self.waiting:
            if same(row.request):
                return _waiting_cache(row).prefix
        for slot, row in enumerate(self.live):
            if same(row.request):
                return self.slots.prefix(slot, cut_of(request, self.family))
        return None

    def _behind(self, prefix: Prefix, requests: Sequence[Request]) -> list[_Live]:
        """Run what is behind the prefix, for several prompts at once, and choose first tokens."""
        positions = [laid_out(request, self.family, self.model)[1] for request in requests]
        tails = [request.row.sequences["input_ids"][prefix.length :] for request in requests]
        width, device = max(len(tail) for tail in tails), self.model.device
        output = forward(
            self.model,
            prefix.for_rows(),
            input_ids=left_padded(tails, self.family.pad_id).to(device),
            attention_mask=_mask_behind(prefix, tails).to(device),
            position_ids=torch.cat([_last(each, width, prefix.length) for each in positions], -2),
        )
        rows = [
            _Live(
                request,
                _chooser(request),
                last_position(position),
                int(min(request.generation.max_new_tokens, room_for(position, self.context))),
                cache=RowCache.cut(prefix, output.past_key_values, index, len(tail)),
            )
            for index, (request, position, tail) in enumerate(
                zip(requests, positions, tails, strict=True)
            )
        ]
        _choose(output.logits, rows, self.family)
        return rows

    # ---- decoding ---------------------------------------------------------------------------

    def _step(self) -> list[Finished]:
        """Give every live row one token more; rows that end leave."""
        self._let_join()
        self.newest = None
        started = time.perf_counter()
        device, rows = self.model.device, self.live
        output = forward(
            self.model,
            self.slots.cache,
            input_ids=torch.tensor([[row.tokens[-1]] for row in rows], device=device),
            attention_mask=self.slots.mask(device),
            position_ids=torch.cat([row.position + len(row.tokens) for row in rows], dim=-2),
        )
        self.slots.advance()
        _choose(output.logits, rows, self.family)
        passed = time.perf_counter() - started
        self.statistics.count_step(len(rows), self.slots.lengths, self.slots.end, passed)
        for row in rows:
            row.seconds += passed / len(rows)
        return [self._finished(row) for row in rows if row.done]

    def _let_join(self) -> None:
        """Give waiting rows the places of those that have ended, and close the gaps."""
        free = [slot for slot, row in enumerate(self.live) if row.done]
        for slot in list(free):
            if self.waiting and self.slots.replace(slot, _waiting_cache(self.waiting[0])):
                self.live[slot] = self._joined()
                free.remove(slot)
        kept = [slot for slot in range(len(self.live)) if slot not in free]
        count = min(len(self.waiting), self.rows_at_once - len(kept))
        if free or count or not self.slots.room:
            joining = [_waiting_cache(self.waiting[index]) for index in range(count)]
            self.slots.lay_out(kept, joining)
            self.live = [self.live[slot] for slot in kept] + [self._joined() for _ in joining]

    def _joined(self) -> _Live:
        row = self.waiting.popleft()
        row.cache = None
        return row

    def _finished(self, row: _Live) -> Finished:
        cut = row.limit < row.request.generation.max_new_tokens and not row.has_ended(self.family)
        self.statistics.tokens += len(row.tokens)
        return Finished(row.request, row.tokens, row.seconds, over_context=cut)


def _no_slots(model: PreTrainedModel) -> SlotCache:
    """Return the cache of a batch without rows."""
    return SlotCache(spare=1 if model.device.type == "cpu" else 0)


def _choose(logits: Tensor, rows: Sequence[_Live], family: Family) -> None:
    """Give each row its next token. `logits` are of their last positions: [rows, 1, vocabulary]."""
    made = [row.tokens for row in rows]
    chosen = choose_all(logits[:, -1], [row.chooser for row in rows], made)
    for row, token in zip(rows, chosen, strict=True):
        row.tokens.append(token)
        row.done = len(row.tokens) >= row.limit or row.has_ended(family)


def _chooser(request: Request) -> Chooser:
    ids = request.row.sequences["input_ids"]
    return Chooser(request.generation, request.seed, ids, request.grammar)


def _waiting_cache(row: _Live) -> RowCache:
    assert row.cache is not None  # it has no place yet
    return row.cache


def _mask_behind(prefix: Prefix, tails: Sequence[Tensor]) -> Tensor:
    """Return the mask of several rows behind one prefix, padded on their left. int64 [rows, L]."""
    ones = left_padded([torch.ones(len(tail)) for tail in tails], 0)
    return torch.cat((torch.ones(len(tails), prefix.length, dtype=torch.long), ones), dim=1)


def _last(positions: Tensor, width: int, start: int) -> Tensor:
    """Cut positions [..., 1, L] to those from `start`, filled up on the left to `width`."""
    tail = positions[..., start:]
    return torch.nn.functional.pad(tail, (width - tail.shape[-1], 0))
