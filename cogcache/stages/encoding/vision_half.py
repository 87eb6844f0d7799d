"""The vision half in memory: fewer frames a pass, then more offloaded, when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from cogcache.errors import ClipError
from cogcache.models import ClipTensors, Family
from cogcache.planning import Fitted, VisionLoader
from cogcache.settings import Settings
from cogcache.stages.runs.report import RunReport
from cogcache.system import running_out

logger = logging.getLogger(__name__)


@dataclass
class VisionHalf:
    """The vision half in memory, loaded when this is made.

    Args:
        settings: device, memory, precision and `frames_per_batch`, of which a plan may take less.
        family: of the checkpoint, at the cache point.
        report: gets the plan, its reason, and the bytes read.
    """

    settings: Settings
    family: Family
    report: RunReport

    def __post_init__(self) -> None:
        self.half = Fitted(VisionLoader(self.family, self.settings), self.report.note_load)
        self.frames_per_batch = self.half.choice.frames_per_batch

    def encode(self, clips: Sequence[ClipTensors]) -> list[ClipTensors | ClipError]:
        """Encode clips together; each one's features lie in the host's memory.

        Where memory runs out, a pass takes half as many frames; if one is too many, more of the
        weights wait elsewhere. A clip that is too large even so is given up with an error.
        """
        with self.report.timings.time("encode"):
            while True:
                if encoded := self._attempt(clips):
                    return [*encoded]
                if not self._make_room():
                    break
        if len(clips) > 1:
            return [found for clip in clips for found in self.encode([clip])]
        problem = "memory runs out though one frame passes at a time and no weights stay"
        return [
            ClipError("out_of_memory", problem, "give the stage more memory, and --retry-failed")
        ]

    def _attempt(self, clips: Sequence[ClipTensors]) -> list[ClipTensors]:
        with running_out():
            encoded = self.family.encode(self.half.model, clips, self.frames_per_batch)
            return [
                ClipTensors({name: t.cpu() for name, t in each.tensors.items()}, each.texts)
                for each in encoded
            ]
        return []

    def _make_room(self) -> bool:
        """Halve the frames of a pass, or have more weights wait; False where nothing is left."""
        if self.frames_per_batch > 1:
            self.frames_per_batch //= 2
            frames = self.frames_per_batch
            logger.warning("out of memory: going on with %d frames a pass", frames)
            self.report.warn([f"memory ran out: {frames} frames a pass from there on"])
            return True
        room = self.half.make_room()
        self.frames_per_batch = self.half.choice.frames_per_batch if room else 1
        return room
