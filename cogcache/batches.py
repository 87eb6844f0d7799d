"""Requests through `generate`: for beams, and for layers that do not keep all keys."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from cogcache.generation import (
    Finished,
    NoRoom,
    Request,
    Statistics,
    context_of,
    generate,
    laid_out,
    room_for,
)
from cogcache.models.family import Family
from cogcache.system.heap import running_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_END = object()


class Batches:
    """Requests through `generate`, a batch at a time.

    Args:
        model: the language half, or the whole model.
        family: lays rows out.
        rows_at_once: most rows in a batch.
    """

    def __init__(self, model: PreTrainedModel, family: Family, rows_at_once: int) -> None:
        self.model, self.family, self.rows_at_once = model, family, rows_at_once
        self.context = context_of(model)
        self.statistics = Statistics()
        self.held: deque[Request] = deque()
        """Taken up and not done: they did not fit a batch."""
        self.again: deque[Request] = deque()

    def submit(self, request: Request) -> None:
        """Put in a request behind all others, while `run` is under way."""
        self.again.append(request)

    def run(self, groups: Iterable[Sequence[Request]]) -> Iterator[Finished]:
        """Yield each request with its tokens, as they get done.

        Args:
            groups: requests about one clip each; an empty one says that there are no more just now.

        Raises:
            NoRoom: memory does not suffice for one of them.
        """
        incoming = _one_by_one(groups)
        while batch := self._batch(incoming):
            yield from self._generate(batch)

    def _batch(self, incoming: Iterator[Request | None]) -> list[Request]:
        """Take requests that go together, as many as there are just now; none at the end."""
        batch: list[Request] = []
        more = True
        while more or self.held or self.again:
            request: object = self.held.popleft() if self.held else next(incoming, _END)
            if isinstance(request, Request):
                if batch and not self._fits(request, batch):
                    self.held.appendleft(request)
                    return batch
                batch.append(request)
            elif batch:
                return batch
            elif self.again:
                return [self.again.popleft()]
            more = request is not _END
        return batch

    def _fits(self, request: Request, batch: Sequence[Request]) -> bool:
        # Drawn tokens must not depend on who else is in the batch.
        generation = request.generation
        together = 1 if generation.do_sample else self.rows_at_once
        most = self.family.rows_together(together, generation.num_beams)
        return len(batch) < most and self._kind(request) == self._kind(batch[0])

    def _kind(self, request: Request) -> tuple[object, ...]:
        """Return what the requests of a batch have in common."""
        about_clip = bool(request.row.features.tensors)
        return request.generation, self._limit(request), about_clip

    def _limit(self, request: Request) -> int:
        """Most new tokens: what was asked for, or what the context has room for."""
        _, positions = laid_out(request, self.family, self.model)
        room = room_for(positions, self.context)
        return int(min(request.generation.max_new_tokens, room))

    def _generate(self, batch: Sequence[Request]) -> list[Finished]:
        """Generate for a batch; where memory runs out none is done, and batches get smaller."""
        started = time.perf_counter()
        rows, first, limit = [request.row for request in batch], batch[0], self._limit(batch[0])
        generation = first.generation.model_copy(update={"max_new_tokens": limit})
        with running_out():
            made = generate(
                self.model, self.family, rows, generation,
                seed=first.seed, grammar=first.grammar,
            )  # fmt: skip
            seconds = (time.perf_counter() - started) / len(batch)
            return [
                self._finished(request, tokens, seconds, limit)
                for request, tokens in zip(batch, made, strict=True)
            ]
        self.held.extendleft(reversed(batch))
        if len(batch) == 1:
            unfinished = [*self.held, *self.again]
            self.held.clear()
            self.again.clear()
            raise NoRoom(unfinished)
        self.rows_at_once = len(batch) // 2
        self.statistics.note_halved(self.rows_at_once)
        return []

    def _finished(
        self, request: Request, tokens: list[int], seconds: float, limit: int
    ) -> Finished:
        cut = limit < request.generation.max_new_tokens and len(tokens) == limit
        ended = tokens[-1] in self.family.stop_ids
        return Finished(request, tokens, seconds, over_context=cut and not ended)


def _one_by_one(groups: Iterable[Sequence[Request]]) -> Iterator[Request | None]:
    """Yield the requests of all groups; None for an empty one."""
    for group in groups:
        yield from group
        if not group:
            yield None
