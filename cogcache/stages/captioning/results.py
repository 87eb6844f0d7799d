"""What became of captions that were asked for: made, or given up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cogcache.catalog import CaptionRow
from cogcache.errors import ClipError
from cogcache.models import model_name
from cogcache.settings import Settings
from cogcache.stages.captioning.tasks import Task


@dataclass(frozen=True, slots=True)
class Made:
    """One caption."""

    task: Task
    text: str
    num_tokens: int
    seconds: float
    """Its share of the time."""
    flags: tuple[str, ...]
    retried: dict[str, Any] = field(default_factory=dict)
    """Why it was made a second time, and with which settings changed; empty for a first try."""
    tokens: tuple[int, ...] = ()
    """Without the one that ends it."""

    def row(self, settings: Settings, run: int) -> CaptionRow:
        """Return the caption as the catalog keeps it."""
        task, clip = self.task, self.task.clip
        retried = {"retried": self.retried} if self.retried else {}
        return {
            "caption_key": task.key.digest,
            "feature_key": task.key.feature_key,
            "video": clip["video"],
            "start_s": clip["start_s"],
            "end_s": clip["end_s"],
            "prompt_name": task.prompt_name,
            "prompt": task.prompt,
            "caption": self.text,
            "model": model_name(settings.model, settings.language.adapter),
            "quantization": settings.language.quantization,
            "flags": list(self.flags),
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
            "settings": {**task.key.fields(), **retried},
            "run": run,
            "video_digest": clip["video_digest"],
        }


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A caption that could not be made."""

    task: Task
    error: ClipError
