"""What is asked of a language half and what it gives; and the way through `generate`.

Rows usually go through `decoding`. `generate` is for beams, and for models whose layers do not
keep all keys.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cogcache import endings
from cogcache.config import Generation
from cogcache.models.family import Family, Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel

    from cogcache.structured import Grammar

DRAWING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One caption to make.

    Args:
        row: clip and prompt, laid out.
        clip: what rows of one clip have in common, and no others.
        seed: of this row's random numbers.
        generation: how its tokens are chosen.
        task: whatever the caller wants back with the tokens.
        grammar: what the tokens have to follow.
    """

    row: Row
    clip: str
    seed: int
    generation: Generation
    task: Any = None
    grammar: Grammar | None = None

    def stops(self, family: Family, tokens: Sequence[int]) -> bool:
        """Say whether the newest tokens hold a stop text."""
        stops = self.generation.stop
        if not stops:
            return False
        return endings.holds(family.text_of(tokens[-endings.window(stops) :]), stops)


@dataclass(frozen=True, slots=True)
class Finished:
    """The tokens of one request, up to and with the one that ends it."""

    request: Request
    tokens: list[int]
    seconds: float
    """Its share of the time."""
    over_context: bool = False
    """Whether it was cut off because the model's context has no room for more."""


@dataclass
class Statistics:
    """What a decoder did, in tokens and seconds."""

    heads: int = 0
    """Texts before the video that were run; clips have them in common."""
    prefixes: int = 0
    """Video parts that were run."""
    prefix_tokens: int = 0
    prefill_s: float = 0.0
    tokens: int = 0
    """New ones, over all rows."""
    steps: int = 0
    row_steps: int = 0
    """Rows over all steps; each gives one token."""
    columns: int = 0
    """Columns of keys over all steps and rows, padding included."""
    padded_columns: int = 0
    decode_s: float = 0.0

    def count_step(self, rows: int, lengths: Sequence[int], end: int, seconds: float) -> None:
        """Count one step of a batch whose rows end at column `end`."""
        self.steps += 1
        self.row_steps += rows
        self.columns += rows * end
        self.padded_columns += rows * end - sum(lengths)
        self.decode_s += seconds

    def lines(self) -> list[str]:
        """Return what a reader of the report wants to know."""
        if not self.steps:
            return []
        padding = self.padded_columns / self.columns
        return [
            f"decoding: {self.prefixes} prefills of a video part, {self.tokens} new tokens, "
            f"{self.row_steps / self.steps:.1f} rows a step, {padding:.1%} of the keys padding"
        ]


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
        self.again: deque[Request] = deque()

    def submit(self, request: Request) -> None:
        """Put in a request between others, while `run` is under way."""
        self.again.append(request)

    def run(self, groups: Iterable[Sequence[Request]]) -> Iterator[Finished]:
        """Yield each request with its tokens, as they get done.

        Args:
            groups: requests about one clip each; an empty one says that there are no more just now.
        """
        batch: list[Request] = []
        for group in groups:
            for request in group:
                if batch and not self._fits(request, batch):
                    yield from self._generate(batch)
                    batch = []
                batch.append(request)
            if not group:
                yield from self._rest(batch)
                batch = []
        yield from self._rest(batch)

    def _rest(self, batch: Sequence[Request]) -> Iterator[Finished]:
        """Generate for all that is there, though a batch be not full."""
        yield from self._generate(batch)
        while self.again:
            yield from self._generate([self.again.popleft()])

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

    def _generate(self, batch: Sequence[Request]) -> Iterator[Finished]:
        from cogcache.memory import out_of_memory

        if not batch:
            return
        started = time.perf_counter()
        rows, first, limit = [request.row for request in batch], batch[0], self._limit(batch[0])
        generation = first.generation.model_copy(update={"max_new_tokens": limit})
        try:
            made = generate(
                self.model, self.family, rows, generation,
                seed=first.seed, grammar=first.grammar,
            )  # fmt: skip
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or len(batch) == 1:
                raise
            made = []
        if not made:
            self.rows_at_once = half = len(batch) // 2
            yield from self._generate(batch[:half])
            yield from self._generate(batch[half:])
            return
        seconds = (time.perf_counter() - started) / len(batch)
        for request, tokens in zip(batch, made, strict=True):
            cut = limit < request.generation.max_new_tokens and len(tokens) == limit
            ended = tokens[-1] in self.family.stop_ids
            yield Finished(request, tokens, seconds, over_context=cut and not ended)


def laid_out(
    request: Request, family: Family, model: PreTrainedModel
) -> tuple[dict[str, Any], Tensor]:
    """Return the inputs of one row, and the positions `generate` would give its tokens.

    They are asked for the whole prompt and cut afterwards: a prefix alone counts otherwise
    in families whose positions have axes for space and time.
    """
    inputs = family.model_inputs([request.row], model)
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    return inputs, model._prepare_position_ids_for_generation(inputs["input_ids"], others)


def context_of(model: PreTrainedModel) -> int | None:
    """Return how many positions a model knows; None where it does not say."""
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None)


def room_for(positions: Tensor, context: int | None) -> float:
    """Return how many new tokens a context has room for behind these positions; one at least."""
    return max(1, context - 1 - int(positions.max())) if context else math.inf


def generate(
    model: PreTrainedModel,
    family: Family,
    rows: Sequence[Row],
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

    if generation.do_sample:
        torch.manual_seed(generation.seed if seed is None else seed)
    inputs = family.model_inputs(rows, model)
    length = inputs["input_ids"].shape[1]
    held = {"logits_processor": LogitsProcessorList([grammar.processor(length)])} if grammar else {}
    config = generation_config(family, generation)
    with torch.inference_mode():
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
