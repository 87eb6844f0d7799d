"""What a plan says of halves, clips, disk and memories; `as_dict` gives the rows of `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cogcache.planning.choices import LanguageChoice, VisionChoice

if TYPE_CHECKING:
    from cogcache.planning.clip import Size
    from cogcache.planning.hours import PlannedHours
    from cogcache.planning.training import TrainingPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageParts:
    """What the weights of a language half are made of, in bytes."""

    embedding_bytes: int
    head_bytes: int
    not_quantised_bytes: int
    quantisation_bytes: int
    """Scales and tables."""
    saved_bytes: int
    """By quantisation, of what the same half takes without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedHalf:
    """A half at one precision."""

    half: str
    precision: str
    weights_bytes: int
    is_asked: bool
    """Whether the settings ask for this precision."""
    parts: LanguageParts | None = None
    """None for the vision half, which is never quantised."""

    def as_dict(self) -> dict[str, Any]:
        """Return the row of this half."""
        row: dict[str, Any] = {
            "half": self.half,
            "precision": self.precision,
            "weights_bytes": self.weights_bytes,
        }
        if self.parts:
            parts = asdict(self.parts)
            saved = parts.pop("saved_bytes")
            row |= {f"of_it_{name}": size for name, size in parts.items()} | {"saved_bytes": saved}
        return row | {"asked": self.is_asked}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTokens:
    """How long the rows of a clip are."""

    frames: int
    size: Size | None
    """Width and height of the frames; None where the family scales all of them to one size."""
    prompts: int
    row_tokens: int
    over_context: str | None
    """Says by how much rows are too long for the model; None where they are not."""

    @property
    def size_text(self) -> str | None:
        """The size, as in `1280x720`."""
        return f"{self.size[0]}x{self.size[1]}" if self.size else None

    @property
    def reason(self) -> str:
        """What the number of tokens follows from."""
        number = f"{self.prompts} prompts" if self.prompts > 1 else "1 prompt"
        size = f" of {self.size_text}" if self.size else ""
        return (
            f"{self.frames} frames{size}: {self.row_tokens:,} tokens a row; "
            f"the video part once for {number}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the row of the clip."""
        return {
            "frames": self.frames,
            "frame_size": self.size_text,
            "prompts": self.prompts,
            "row_tokens": self.row_tokens,
            "reason": self.reason,
            "over_context": self.over_context,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDisk:
    """What clips take on the disk at one cache point, before compression."""

    cache_point: str
    clips: int
    clip_features_bytes: int | None
    """None where nobody knows before the first clip is encoded."""
    captions_bytes: int
    clip_prefix_bytes: int
    """A clip's KV cache, which `--keep-prefix` keeps."""

    @property
    def features_bytes(self) -> int | None:
        """Of all clips."""
        each = self.clip_features_bytes
        return None if each is None else each * self.clips

    @property
    def prefix_bytes(self) -> int:
        """Of all clips."""
        return self.clip_prefix_bytes * self.clips

    def as_dict(self) -> dict[str, Any]:
        """Return the row of this cache point."""
        return {
            "cache_point": self.cache_point,
            "clips": self.clips,
            "features_bytes_a_clip": self.clip_features_bytes,
            "features_bytes": self.features_bytes,
            "captions_bytes": self.captions_bytes,
            "keep_prefix_bytes_a_clip": self.clip_prefix_bytes,
            "keep_prefix_bytes": self.prefix_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMemory:
    """What was chosen for both stages in a memory of one size."""

    name: str
    memory_bytes: int
    margin_bytes: int
    """Left free, for the reason beside it."""
    margin_reason: str
    vision: VisionChoice
    language: LanguageChoice
    least_bytes: Mapping[str, int]
    """The smallest memory in which each half runs, by half."""
    cache_point: str
    cache_point_reason: str

    def choice(self, half: str) -> VisionChoice | LanguageChoice:
        """Return what was chosen for one half."""
        return self.vision if half == "vision" else self.language

    def as_dict(self) -> dict[str, Any]:
        """Return the row of this memory."""
        return {
            "memory": self.name,
            "memory_bytes": self.memory_bytes,
            "margin_bytes": self.margin_bytes,
            "margin_reason": self.margin_reason,
            "vision": self._stage("vision") | {"frames_per_batch": self.vision.frames_per_batch},
            "language": self._stage("language")
            | {
                "clips_per_batch": self.language.clips_per_batch,
                "embedding_waits": self.language.embedding_waits,
            },
            "cache_point": self.cache_point,
            "cache_point_reason": self.cache_point_reason,
        }

    def _stage(self, half: str) -> dict[str, Any]:
        choice = self.choice(half)
        return {
            "fits": choice.fits,
            "resident_layers": choice.resident_layers,
            "num_layers": choice.num_layers,
            **asdict(choice.plan),
            "peak_bytes": choice.plan.peak_bytes,
            "smallest_bytes": self.least_bytes[half],
            "reason": choice.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `cogcache plan` says of a model. Bytes are whole numbers."""

    model: str
    whole_bytes: int
    """Of all weights in bfloat16."""
    halves: tuple[PlannedHalf, ...]
    """Each half at every precision."""
    clip: ClipTokens
    disk: tuple[PlannedDisk, ...]
    """One for each cache point of the family."""
    hours: PlannedHours
    memories: tuple[PlannedMemory, ...]
    videos: str | None = None
    """What was found in the videos, where some were named."""
    training: TrainingPlan | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as `--json` prints it."""
        row: dict[str, Any] = {
            "model": self.model,
            "whole_bytes": self.whole_bytes,
            "halves": [half.as_dict() for half in self.halves],
            "clip": self.clip.as_dict(),
            "disk": [each.as_dict() for each in self.disk],
            "hours": self.hours.as_dict(),
            "memories": [memory.as_dict() for memory in self.memories],
        }
        if self.videos is not None:
            row["videos"] = self.videos
        if self.training is not None:
            row["training"] = self.training.as_dict()
        return row
