"""CogVLM2-Video, natively: the flagship family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cogcache.models.cogvlm2.configuration import CogVLM2VideoConfig
    from cogcache.models.cogvlm2.modeling import CogVLM2VideoForConditionalGeneration

__all__ = ["CogVLM2VideoConfig", "CogVLM2VideoForConditionalGeneration"]


def __getattr__(name: str) -> Any:
    """Import the classes on first use: they need torch and transformers."""
    if name == "CogVLM2VideoConfig":
        from cogcache.models.cogvlm2.configuration import CogVLM2VideoConfig

        return CogVLM2VideoConfig
    if name == "CogVLM2VideoForConditionalGeneration":
        from cogcache.models.cogvlm2.modeling import CogVLM2VideoForConditionalGeneration

        return CogVLM2VideoForConditionalGeneration
    raise AttributeError(name)
