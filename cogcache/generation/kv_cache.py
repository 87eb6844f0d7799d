"""Keys and values of rows that come and go: one prefix for many rows, room to grow, slots to reuse.

Imported where rows are decoded; it needs torch and transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

KeyValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [H, L, D]."""
ROOM = 64
"""Columns that a batch gets beyond its longest row. It is laid out anew when they are used up."""


def keeps_all_keys(config: Any) -> bool:
    """Say whether every layer of a decoder keeps a key and a value a token, and nothing else.

    Sliding windows and linear attention keep less, which cannot be cut up and joined.
    """
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


class _RowsBehindPrefix(DynamicLayer):  # type: ignore[misc]
    """Several rows behind one prefix, for one pass; only what is theirs alone is kept."""

    def __init__(self, prefix: KeyValues) -> None:
        super().__init__()
        self.prefix = prefix
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states, value_states
        rows = key_states.shape[0]
        keys, values = (each[None].expand(rows, -1, -1, -1) for each in self.prefix)
        return torch.cat((keys, key_states), dim=-2), torch.cat((values, value_states), dim=-2)

    def get_seq_length(self) -> int:
        own = 0 if self.keys is None else self.keys.shape[-2]
        return int(self.prefix[0].shape[-2]) + own


class _RowsBehindPrefixes(DynamicLayer):  # type: ignore[misc]
    """Several rows, each behind a prefix of its own, for one pass; prefixes end at one column."""

    def __init__(self, prefixes: Sequence[KeyValues]) -> None:
        super().__init__()
        self.prefixes = prefixes
        self.length = max(int(keys.shape[-2]) for keys, _ in prefixes)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states, value_states
        keys, values = zip(*self.prefixes, strict=True)
        return self._joined(keys, key_states), self._joined(values, value_states)

    def _joined(self, prefixes: Sequence[Tensor], own: Tensor) -> Tensor:
        # Zeros, not what memory holds: a masked NaN is still a NaN.
        rows = [pad(each, (0, 0, self.length - each.shape[-2], 0)) for each in prefixes]
        return torch.cat((torch.stack(rows), own), dim=-2)

    def get_seq_length(self) -> int:
        own = 0 if self.keys is None else self.keys.shape[-2]
        return self.length + int(own)


class _Slots(DynamicLayer):  # type: ignore[misc]
    """Rows right-aligned in a buffer with room on the right; columns are written in place."""

    def __init__(self, keys: Tensor, values: Tensor, end: int) -> None:
        super().__init__()
        self.keys, self.values, self.end = keys, values, end
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start, self.end = self.end, self.end + key_states.shape[-2]
        self.keys[:, :, start : self.end] = key_states
        self.values[:, :, start : self.end] = value_states
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]

    def get_seq_length(self) -> int:
        return self.end


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a decoder keeps of a clip: keys and values of its video part, a pair a layer."""

    layers: Sequence[KeyValues]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return int(self.layers[0][0].shape[-2])

    @classmethod
    def of(cls, cache: Cache) -> Prefix:
        """Take over the only row of a cache."""
        return cls([(layer.keys[0], layer.values[0]) for layer in cache.layers])

    def first(self, length: int) -> Prefix:
        """Return its first `length` tokens; they share its memory."""
        return Prefix([(keys[:, :length], values[:, :length]) for keys, values in self.layers])

    def behind(self, head: Prefix) -> Prefix:
        """Return one prefix of both: `head`, and this, which was run behind it."""
        return Prefix(
            [
                (torch.cat((first[0], own[0]), dim=-2), torch.cat((first[1], own[1]), dim=-2))
                for first, own in zip(head.layers, self.layers, strict=True)
            ]
        )

    def for_rows(self) -> Cache:
        """Return a cache in which rows go on behind this prefix, for one pass."""
        return Cache(layers=[_RowsBehindPrefix(layer) for layer in self.layers])


def rows_behind(prefixes: Sequence[Prefix]) -> Cache:
    """Return a cache in which rows go on for one pass, each behind its own of these prefixes.

    Shorter prefixes are filled up on their left; the mask has to leave that out.
    """
    if all(each is prefixes[0] for each in prefixes):
        return prefixes[0].for_rows()
    return Cache(
        layers=[
            _RowsBehindPrefixes(layers)
            for layers in zip(*(each.layers for each in prefixes), strict=True)
        ]
    )


@dataclass(frozen=True, slots=True)
class RowCache:
    """One row that waits for its place: a shared prefix, and what is its own."""

    prefix: Prefix
    own: Sequence[KeyValues]

    @classmethod
    def cut(cls, prefix: Prefix, cache: Cache, row: int, length: int) -> RowCache:
        """Take the last `length` tokens of one row of `prefix.for_rows()` after its pass."""
        own = [
            (layer.keys[row, :, -length:].clone(), layer.values[row, :, -length:].clone())
            for layer in cache.layers
        ]
        return cls(prefix, own)

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.prefix.length + int(self.own[0][0].shape[-2])

    def parts(self, layer: int) -> Iterator[KeyValues]:
        """Yield what the row holds in a layer, from left to right."""
        yield self.prefix.layers[layer]
        yield self.own[layer]


class SlotCache:
    """The rows of a batch, each in a slot; `cache` is what the model is given.

    Rows end at the same column, so that each step writes one column and masks what is left of
    the shorter ones.

    Args:
        spare: columns on the left that no row uses. Where all of a mask is ones transformers drops
            it, and on the CPU attention of grouped heads without a mask takes ten times as long
            for one new token: one spare column keeps the mask.
    """

    def __init__(self, spare: int = 0) -> None:
        self.spare = spare
        self.reset()

    def reset(self) -> None:
        """Drop all rows and free their memory."""
        self.lengths: list[int] = []
        self.cache = Cache(layers=[])
        self.end = 0

    @property
    def room(self) -> int:
        """Columns that can be written before the rows must be laid out anew."""
        return self._capacity - self.end if self.lengths else 0

    @property
    def _capacity(self) -> int:
        return int(self.cache.layers[0].keys.shape[-2])

    def mask(self, device: Any) -> Tensor:
        """Return the attention mask for the column that comes next: int64 [B, end + 1]."""
        columns = torch.arange(self.end + 1, device=device)
        lengths = torch.tensor(self.lengths, device=device)
        return (columns >= self.end - lengths[:, None]).long()

    def advance(self) -> None:
        """Count the column that a pass has written."""
        self.lengths = [length + 1 for length in self.lengths]
        self.end += 1

    def replace(self, slot: int, row: RowCache) -> bool:
        """Put a row into a slot whose row has ended; False where it is too long for it."""
        if row.length + self.spare > self.end:
            return False
        for index, layer in enumerate(self.cache.layers):
            _fill(layer, slot, self.end, row.parts(index))
        self.lengths[slot] = row.length
        return True

    def prefix(self, slot: int, length: int) -> Prefix:
        """Return a copy of the first `length` tokens of the row in a slot."""
        start = self.end - self.lengths[slot]
        return Prefix(
            [
                (
                    layer.keys[slot, :, start : start + length].clone(),
                    layer.values[slot, :, start : start + length].clone(),
                )
                for layer in self.cache.layers
            ]
        )

    def lay_out(self, kept: Sequence[int], joining: Sequence[RowCache] = ()) -> None:
        """Keep these slots, in order, let rows join behind them, and make room on the right."""
        lengths = [self.lengths[slot] for slot in kept] + [row.length for row in joining]
        if not lengths:
            self.reset()
            return
        end = max(lengths) + self.spare
        layers = []
        for index in range(len(self.cache.layers) or len(joining[0].own)):
            sources = [self._kept(slot, index) for slot in kept]
            sources += [row.parts(index) for row in joining]
            layer = _empty(joining[0].own[index] if joining else self._pair(index), lengths, end)
            for slot, source in enumerate(sources):
                _fill(layer, slot, end, source)
            layers.append(layer)
            if self.cache.layers:  # one layer at a time: the peak is a layer more, not a batch more
                self.cache.layers[index] = layer
        self.cache, self.lengths, self.end = Cache(layers=layers), lengths, end

    def _pair(self, index: int) -> KeyValues:
        layer = self.cache.layers[index]
        return layer.keys[0], layer.values[0]

    def _kept(self, slot: int, index: int) -> Iterator[KeyValues]:
        layer, start = self.cache.layers[index], self.end - self.lengths[slot]
        yield layer.keys[slot, :, start : self.end], layer.values[slot, :, start : self.end]


def _empty(like: KeyValues, lengths: Sequence[int], end: int) -> _Slots:
    # Zeros, not what memory holds: a masked NaN is still a NaN.
    keys, values = (
        each.new_zeros(len(lengths), each.shape[0], end + ROOM, each.shape[-1]) for each in like
    )
    return _Slots(keys, values, end)


def _fill(layer: _Slots, slot: int, end: int, parts: Iterator[KeyValues]) -> None:
    pieces = list(parts)
    start = end - sum(keys.shape[-2] for keys, _ in pieces)
    for keys, values in pieces:
        stop = start + keys.shape[-2]
        layer.keys[slot, :, start:stop] = keys
        layer.values[slot, :, start:stop] = values
        start = stop
