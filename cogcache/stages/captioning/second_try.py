"""Checks a caption: sets its flags, and asks once more if something is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cogcache.errors import ClipError
from cogcache.generation import Finished, Request, changes_for, flags_of, stop_texts
from cogcache.models import Family
from cogcache.settings import Settings
from cogcache.stages.captioning.remaking import said_of
from cogcache.stages.captioning.results import GivenUp, Made

if TYPE_CHECKING:
    from cogcache.generation import Grammar


@dataclass(frozen=True, slots=True)
class SecondTry:
    """The task of a request that asks once more, as the first caption was not good."""

    first: Made
    changes: dict[str, Any]


@dataclass(frozen=True)
class CaptionCheck:
    """Turns tokens into captions with flags, and decides which captions are asked for again."""

    settings: Settings
    family: Family
    grammar: Grammar | None

    def outcome(self, finished: Finished) -> Made | GivenUp | Request:
        """Return the caption to keep, why there is none, or the request that asks once more."""
        request = finished.request
        if finished.given_up:
            return _given_up(request, finished.error)
        made = self._made(finished)
        if isinstance(request.task, SecondTry):
            return min(request.task.first, made, key=lambda each: len(each.flags))
        generation = request.generation
        changes = changes_for(made.flags, generation) if generation.retry else {}
        if not changes:
            return made
        changed = generation.model_copy(update=changes)
        # The row's own random numbers come from the key; the same would draw the same once more.
        seed = request.seed + ("seed" in changes)
        return replace(request, generation=changed, seed=seed, task=SecondTry(made, changes))

    def _made(self, finished: Finished) -> Made:
        """Turn tokens into a caption and its flags."""
        request, tokens = finished.request, finished.tokens
        ended = bool(tokens) and tokens[-1] in self.family.stop_ids
        kept = tokens[:-1] if ended else tokens
        text = self.family.text_of(kept)
        stops = request.generation.stop
        if stop_texts.holds(text, stops):
            text, ended = stop_texts.cut(text, stops), True
        over_context = finished.over_context and not ended
        limits = self.settings.limits
        flags = flags_of(text, kept, ended=ended, over_context=over_context, limits=limits)
        if self.grammar and not self.grammar.is_followed(text):
            flags += ("invalid_json",)
        task, retried = request.task, {}
        if isinstance(task, SecondTry):
            retried = {"because": list(task.first.flags), "changes": task.changes}
            task = task.first.task
        elif task.rejected:
            retried = said_of(request)
        flags += ("from_flagged",) if task.from_flagged else ()
        flags += ("gaps",) if task.gaps else ()
        return Made(task, text, len(kept), finished.seconds, flags, retried, tuple(kept))


def _given_up(request: Request, error: ClipError | None) -> Made | GivenUp:
    """Return what is left of a caption that there are no features, or is no memory, for."""
    if isinstance(request.task, SecondTry):
        return request.task.first
    if error is not None:
        return GivenUp(request.task, error)
    problem = "memory runs out with a single caption at a time and no layer resident"
    hint = "give the stage more memory, or fewer frames (--max-frames)"
    return GivenUp(request.task, ClipError("out_of_memory", problem, hint))
