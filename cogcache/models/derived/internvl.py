"""InternVL: its processor cannot take text alone, so text goes round it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cogcache.models.derived.family import DerivedFamily
from cogcache.models.derived.processing import ClipProcessor

if TYPE_CHECKING:
    from torch import Tensor


class InternVLFamily(DerivedFamily):
    """InternVL3 and 3.5 in the layout of transformers; frames are images to it."""

    @cached_property
    def processor(self) -> ClipProcessor:
        """The checkpoint's processor."""
        return _InternVLProcessor(self.checkpoint, self.name)


class _InternVLProcessor(ClipProcessor):
    def tokenized(
        self, processor: Any, text: list[str], arguments: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        """Run what all processors share; the class' own part counts the pixels of each image."""
        from transformers import ProcessorMixin

        settings = processor._merge_kwargs(
            tokenizer_init_kwargs=processor.tokenizer.init_kwargs, return_tensors="pt", **arguments
        )
        outputs: Mapping[str, Tensor] = ProcessorMixin.__call__(processor, text=text, **settings)
        return outputs
