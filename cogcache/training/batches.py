"""Which examples go through the model together, and in which order: the seed alone decides."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cogcache.training.examples import Example

_GROUP = 16
"""Batches whose examples are sorted by length together: little padding, and still a new order."""


def batches_of(
    examples: Sequence[Example], tokens_per_batch: int, seed: int, epoch: int
) -> list[list[Example]]:
    """Return the batches of one epoch; each example is in one of them.

    Args:
        examples: of any lengths.
        tokens_per_batch: most tokens of a batch with its padding; a longer example goes alone.
        seed: of the run.
        epoch: its number; each has an order of its own.
    """
    rng = random.Random(f"{seed} {epoch}")
    order = list(examples)
    rng.shuffle(order)
    longest = max(example.length for example in order)
    size = _GROUP * max(1, tokens_per_batch // longest)
    batches = []
    for start in range(0, len(order), size):
        group = sorted(order[start : start + size], key=lambda example: example.length)
        batches += list(cut(group, tokens_per_batch))
    rng.shuffle(batches)
    return batches


def cut(examples: Sequence[Example], tokens_per_batch: int) -> Iterator[list[Example]]:
    """Yield neighbours that together, filled up to the longest, take so many tokens at most."""
    batch: list[Example] = []
    longest = 0
    for example in examples:
        longest = max(longest, example.length)
        if batch and longest * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch, longest = [], example.length
        batch.append(example)
    if batch:
        yield batch


@dataclass
class Order:
    """All batches of a run, epoch after epoch, as transformers' Trainer wants a data loader.

    Args:
        examples: to train on.
        tokens_per_batch: most tokens of a batch.
        seed: of the run.
        num_batches: how many there are in the whole run.
        collate: makes a batch's tensors.
        first: batches that a resumed run has been through.
    """

    examples: Sequence[Example]
    tokens_per_batch: int
    seed: int
    num_batches: int
    collate: Any
    first: int = 0

    @property
    def dataset(self) -> Sequence[Example]:
        """What the Trainer counts."""
        return self.examples

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._batches()):
            if number >= self.num_batches:
                return
            if number >= self.first:
                yield self.collate(batch)

    def _batches(self) -> Iterator[list[Example]]:
        epoch = 0
        while True:
            yield from batches_of(self.examples, self.tokens_per_batch, self.seed, epoch)
            epoch += 1


def batches_in_epochs(
    examples: Sequence[Example], tokens_per_batch: int, seed: int, epochs: float
) -> int:
    """Return how many batches go through the model in so many epochs."""
    whole = sum(
        len(batches_of(examples, tokens_per_batch, seed, epoch)) for epoch in range(int(epochs))
    )
    part = epochs - int(epochs)
    last = batches_of(examples, tokens_per_batch, seed, int(epochs)) if part else []
    return max(1, whole + round(part * len(last)))
