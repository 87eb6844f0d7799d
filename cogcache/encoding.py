"""The vision half at work: loaded to fit its memory, fed batches of clips, halved where it must be.

It knows no catalog and no files, so that it serves wherever a vision half runs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cogcache.config import Settings
from cogcache.errors import CogcacheError
from cogcache.loading import load_vision
from cogcache.memory import out_of_memory, sample
from cogcache.models.family import ClipTensors, Family
from cogcache.runs import RunReport

if TYPE_CHECKING:
    from cogcache.models.halves import LoadedHalf

logger = logging.getLogger(__name__)


@dataclass
class Encoder:
    """The loaded vision half.

    Args:
        settings: device, memory, precision and `frames_per_batch`, of which a plan may take less.
        family: of the checkpoint, at the cache point.
        report: is told the plan, its reason, and the bytes read.
    """

    settings: Settings
    family: Family
    report: RunReport

    def __post_init__(self) -> None:
        with self.report.split.time("load"):
            self.loaded = self._load()

    def _load(self) -> LoadedHalf:
        from cogcache.models.compiled import compile_blocks
        from cogcache.models.halves import WholeModel

        whole = WholeModel.of(self.family.checkpoint, **self.family.partition_settings())
        self.report.base_bytes = sample().host_bytes
        loaded, choice = load_vision(whole, self.family, self.settings)
        if self.settings.vision.compile:
            compile_blocks(loaded.model)
        self.frames_per_batch = choice.frames_per_batch
        self.report.planned = choice.plan
        self.report.notes.append(choice.reason)
        self.report.bytes_by_shard = dict(loaded.bytes_by_shard)
        return loaded

    def encode(self, clips: Sequence[ClipTensors]) -> list[ClipTensors]:
        """Encode clips together; each one's features lie in the host's memory.

        Raises:
            CogcacheError: memory does not even suffice for a single frame.
        """
        with self.report.split.time("encode"):
            return [
                ClipTensors(
                    {name: tensor.cpu() for name, tensor in features.tensors.items()},
                    features.texts,
                )
                for features in self._within_memory(clips)
            ]

    def _within_memory(self, clips: Sequence[ClipTensors]) -> list[ClipTensors]:
        """Encode; where memory runs out, with half as many frames in one pass."""
        while True:
            try:
                return self.family.encode(self.loaded.model, clips, self.frames_per_batch)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if self.frames_per_batch == 1:
                    raise CogcacheError(
                        "memory runs out with a single frame in a pass",
                        "give the stage more memory, or --device cpu",
                    ) from error
            self.frames_per_batch //= 2
            logger.warning("out of memory: going on with %d frames a pass", self.frames_per_batch)
