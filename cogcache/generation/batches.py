"""Requests through `generate`: for beams, and for layers that do not keep all keys."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cogcache.generation.requests import (
    Finished,
    NoRoom,
    Request,
    Statistics,
    context_of,
    laid_out,
    room_for,
)
from cogcache.models import Family, PromptRow
from cogcache.settings import Generation
from cogcache.system import running_out

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from cogcache.generation.json_grammar import Grammar

DRAWING = ("temperature", "top_p", "top_k")


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


def generate(
    model: PreTrainedModel,
    family: Family,
    rows: Sequence[PromptRow],
    generation: Generation,
    *,
    seed: int | None = None,
    grammar: Grammar | None = None,
) -> list[list[int]]:
    """Generate for a left-padded batch of rows.

    Args:
        model: the language half, or the whole model.
        family: lays the batch out.
        rows: clips with prompts, of any lengths.
        generation: how tokens are chosen.
        seed: of the random numbers; that of `generation` where there is none.
        grammar: what the tokens have to follow.

    Returns:
        For each row its new tokens, up to and with the one that ends it; without an end there
        are `max_new_tokens` of them.
    """
    import torch
    from transformers import LogitsProcessorList

    from cogcache.models import raised_products

    if generation.do_sample:
        torch.manual_seed(generation.seed if seed is None else seed)
    inputs = family.model_inputs(rows, model)
    length = inputs["input_ids"].shape[1]
    held = {"logits_processor": LogitsProcessorList([grammar.processor(length)])} if grammar else {}
    config = generation_config(family, generation)
    with torch.inference_mode(), raised_products(model):
        output = model.generate(**inputs, generation_config=config, **held)
    new_tokens = output[:, length:].tolist()
    return [_ended(tokens, family.stop_ids) for tokens in new_tokens]


def generation_config(family: Family, generation: Generation) -> GenerationConfig:
    """Return the settings as transformers takes them."""
    from transformers import GenerationConfig

    drawing: dict[str, Any] = {name: getattr(generation, name) for name in DRAWING}
    return GenerationConfig(
        max_new_tokens=generation.max_new_tokens,
        do_sample=generation.do_sample,
        num_beams=generation.num_beams,
        repetition_penalty=generation.repetition_penalty,
        eos_token_id=list(family.stop_ids),
        pad_token_id=family.pad_id,
        **(drawing if generation.do_sample else {}),
    )


def _ended(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    """Cut off what only fills the row up to the longest of its batch."""
    for position, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: position + 1]
    return tokens
