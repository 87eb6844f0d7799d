"""Requests to a language half and their results; inputs and positions of rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cogcache.errors import ClipError
from cogcache.generation import stop_texts
from cogcache.models import Family, PromptRow
from cogcache.settings import Generation

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from cogcache.generation.json_grammar import Grammar

logger = logging.getLogger(__name__)


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

    row: PromptRow
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
        return stop_texts.holds(family.text_of(tokens[-stop_texts.window(stops) :]), stops)


@dataclass(frozen=True, slots=True)
class Finished:
    """The tokens of one request, up to and with the one that ends it."""

    request: Request
    tokens: list[int]
    seconds: float
    """Its share of the time."""
    over_context: bool = False
    """Whether it was cut off because the model's context has no room for more."""
    given_up: bool = False
    """Whether there are no tokens since memory does not suffice for it, or as `error` says."""
    error: ClipError | None = None


class NoRoom(Exception):
    """Memory runs out with a single row.

    Args:
        requests: all that are not done yet, beginning with the one concerned.
    """

    def __init__(self, requests: list[Request]) -> None:
        super().__init__("memory runs out with a single caption at a time")
        self.requests = requests


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
    halved_to: list[int] = field(default_factory=list)
    """Rows at once after each time that memory ran out."""

    def note_halved(self, rows: int) -> None:
        """Note that memory ran out, and how many rows are taken at once from there on."""
        self.halved_to.append(rows)
        logger.warning("out of memory: going on with %d captions at a time", rows)

    def count_step(self, rows: int, lengths: Sequence[int], end: int, seconds: float) -> None:
        """Count one step of a batch whose rows end at column `end`."""
        self.steps += 1
        self.row_steps += rows
        self.columns += rows * end
        self.padded_columns += rows * end - sum(lengths)
        self.decode_s += seconds

    def lines(self) -> list[str]:
        """Return what a reader of the report wants to know."""
        lines = [
            f"memory ran out: {rows} captions at a time from there on" for rows in self.halved_to
        ]
        if not self.steps:
            return lines
        padding = self.padded_columns / self.columns
        return [
            *lines,
            f"decoding: {self.prefixes} prefills of a video part, {self.tokens} new tokens, "
            f"{self.row_steps / self.steps:.1f} rows a step, {padding:.1%} of the keys padding",
        ]


def laid_out(
    request: Request, family: Family, model: PreTrainedModel
) -> tuple[dict[str, Any], Tensor]:
    """Return the inputs of one row, and the positions of its tokens, [1, L] or [4, 1, L].

    They are asked for the whole prompt and cut afterwards: some schemes count a prefix alone
    otherwise.
    """
    inputs = family.model_inputs([request.row], model)
    return inputs, take_positions(inputs, model)


def take_positions(inputs: dict[str, Any], model: PreTrainedModel) -> Tensor:
    """Take the positions out of the inputs of rows: the family's own, else those of `generate`.

    Args:
        inputs: what `Family.model_inputs` returned; has no `position_ids` afterwards.
        model: the language half, or the whole model.

    Returns:
        int64 [B, L] on a line, or [4, B, L]: the count of tokens, time, height and width.
    """
    positions: Tensor | None = inputs.pop("position_ids", None)
    if positions is None:
        others = {name: value for name, value in inputs.items() if name != "input_ids"}
        positions = model._prepare_position_ids_for_generation(inputs["input_ids"], others)
    return positions


def last_position(positions: Tensor) -> Tensor:
    """Return what a row's new tokens count on from, in the shape of one token's positions.

    Args:
        positions: of the row's tokens, on a line [1, L], or on axes [4, 1, L] of which the first is
            the plain count of tokens.

    Returns:
        Of a line the last one, [1, 1]; of the axes for time, height and width the highest of all
        that were given, whatever stands last, [4, 1, 1].
    """
    last = positions[..., -1:].clone()
    if positions.ndim > 2:
        last[1:] = positions[1:].amax()
    return last


def context_of(model: PreTrainedModel) -> int | None:
    """Return how many positions a model knows; None where it does not say."""
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None)


def room_for(positions: Tensor, context: int | None) -> float:
    """Return how many new tokens a context has room for behind these positions; one at least."""
    return max(1, context - 1 - int(positions.max())) if context else math.inf
