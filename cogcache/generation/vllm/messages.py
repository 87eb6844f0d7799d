"""Requests as the worker takes them: ids, places of features, positions, how to choose tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cogcache.errors import ClipError
from cogcache.generation.requests import Request, room_for
from cogcache.generation.vllm.worker_process import Message
from cogcache.models import Family
from cogcache.settings import Generation

if TYPE_CHECKING:
    from torch import Tensor


class Files(Protocol):
    """Where feature files lie, and what becomes of those that a worker refuses."""

    def path_of(self, key: str) -> Path:
        """Return where the feature file of a key lies."""

    def refused(self, key: str, reason: str, problem: str) -> ClipError:
        """Return why a clip has no captions; a damaged file is moved away.

        Args:
            key: of the features.
            reason: `damaged`, or `unreadable`.
            problem: what is wrong with the file.

        Raises:
            CacheError: the disk is at fault, not the file.
        """


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A request as a message, and how many tokens it may have."""

    message: Message
    limit: int
    cut_by_context: bool
    """Whether the model's context sets the limit, not what was asked for."""


@dataclass(frozen=True)
class Messages:
    """Lays requests out for the worker.

    Args:
        family: says which features stand where, and where tokens stand.
        files: where feature files lie.
        context: how many positions the model knows; None where it does not say.
    """

    family: Family
    files: Files
    context: int | None

    def of(self, number: int, request: Request) -> LaidOut:
        """Return a request as the worker takes it, by a number of its own."""
        row, generation = request.row, request.generation
        ids, positions = row.sequences["input_ids"], self.family.positions(row)
        line = _line(len(ids)) if positions is None else positions
        limit = int(min(generation.max_new_tokens, room_for(line, self.context)))
        slots = self.family.slots(row) if row.features.tensors else None
        about = None if slots is None else self._features(request, slots, positions)
        message: Message = {
            "type": "request",
            "id": number,
            "ids": ids.tolist(),
            "positions": None if positions is None else _axes(positions).tolist(),
            "next_position": int(_axes(line).max()) + 1,
            "features": about,
            "prefix": about["digest"] if about else "",
            "sampling": self._sampling(generation, request.seed, limit),
        }
        return LaidOut(message, limit, limit < generation.max_new_tokens)

    def _features(
        self, request: Request, slots: Tensor, positions: Tensor | None
    ) -> dict[str, Any]:
        """Say which features stand in which places, and what all prompts of the clip share."""
        places = slots.nonzero().flatten()
        end = int(places.max()) + 1
        levels = self.family.feature_levels(request.row.features)
        shared = {
            "key": request.clip,
            "places": places.tolist(),
            "positions": None if positions is None else positions[..., :end].tolist(),
        }
        return {
            "path": str(self.files.path_of(request.clip).absolute()),
            "key": request.clip,
            "names": [name for level in levels for name in level],
            "levels": levels,
            "slots": _runs(places.tolist()),
            "digest": hashlib.sha256(json.dumps(shared).encode()).hexdigest(),
        }

    def _sampling(self, generation: Generation, seed: int, limit: int) -> dict[str, Any]:
        drawing = {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
        if generation.do_sample:
            drawing = {name: getattr(generation, name) for name in drawing}
        return {
            **drawing,
            "seed": seed % 2**63 if generation.do_sample else None,
            "repetition_penalty": generation.repetition_penalty,
            "max_tokens": limit,
            "stop_ids": list(self.family.stop_ids),
            "stream": bool(generation.stop),
        }


def _line(length: int) -> Tensor:
    import torch

    return torch.arange(length)


def _axes(positions: Tensor) -> Tensor:
    """Return positions as vLLM takes them, [3, L]: without the count of tokens, a line thrice."""
    return positions[-3:] if positions.ndim > 1 else positions.expand(3, -1)


def _runs(places: Sequence[int]) -> list[list[int]]:
    """Return where places stand beside each other: the first of each run, and how many."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([place, 1])
    return runs
