"""Loading layers that were stored quantised, through transformers' own path for them.

That path renames tensors as it does for a published checkpoint. What a split stores bears the names
that parameters have in memory, so two quantizers are registered that leave names as they are.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

from cogcache.models.quantization.int4_loading import Int4Config

FOUR_BITS, EIGHT_BITS = "cogcache_stored_4bit", "cogcache_stored_8bit"


class _Stored(BitsAndBytesConfig):  # type: ignore[misc]
    method = ""

    def __init__(self, quant_method: str = "", **settings: Any) -> None:
        bits = {"load_in_8bit": True} if self.method == EIGHT_BITS else {"load_in_4bit": True}
        super().__init__(**bits, **settings)
        self.quant_method = self.method


@register_quantization_config(FOUR_BITS)
class Stored4Bit(_Stored):
    """Settings of layers that were stored in 4 bits."""

    method = FOUR_BITS


@register_quantization_config(EIGHT_BITS)
class Stored8Bit(_Stored):
    """Settings of layers that were stored in 8 bits."""

    method = EIGHT_BITS


@register_quantizer(FOUR_BITS)
class Stored4BitQuantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
    """Reads what bitsandbytes' 4-bit layers write, by the names in memory."""

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Return the reading of quantised layers alone."""
        return cast(list[Any], self.get_weight_conversions())


@register_quantizer(EIGHT_BITS)
class Stored8BitQuantizer(Bnb8BitHfQuantizer):  # type: ignore[misc]
    """Reads what bitsandbytes' 8-bit layers write, by the names in memory."""

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Return the reading of quantised layers alone."""
        return cast(list[Any], self.get_weight_conversions())


def stored_config(settings: BitsAndBytesConfig | Int4Config) -> dict[str, Any]:
    """Return what a model's config must say for its layers to be read as stored.

    Args:
        settings: with which they were quantised.
    """
    if isinstance(settings, Int4Config):
        return {**vars(settings)}
    known = {k: v for k, v in settings.to_dict().items() if not k.startswith(("_", "load_in"))}
    return {**known, "quant_method": EIGHT_BITS if settings.load_in_8bit else FOUR_BITS}
