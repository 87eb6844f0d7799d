"""VideoLLaMA 3: what frames repeat is dropped before it is cached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cogcache.models.derived.family import DerivedFamily

if TYPE_CHECKING:
    from torch import Tensor

MASK = "video_compression_mask"


class VideoLlama3Family(DerivedFamily):
    """VideoLLaMA 3.

    Its feature call returns every row, and its prompt has room only for those that differ from
    the frame before. Dropping them now halves still clips and lets beams work on them.
    """

    def cached(self, features: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cache the rows that the prompt has room for, and no mask."""
        keep = inputs[MASK].to(features.pooler_output[0].device).bool()
        features.pooler_output = [each[keep] for each in features.pooler_output]
        return super().cached(features, inputs)

    def extras(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave the mask out: it has been applied."""
        return super().extras({name: value for name, value in inputs.items() if name != MASK})
