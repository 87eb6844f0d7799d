"""Memory that each stage will need, from config and headers alone, before loading anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcache.models import ITEM_BYTES
from cogcache.settings import Settings
from cogcache.system import pick_device, processor

QUESTION_TOKENS = 11
"""Of a short question with what is around it."""


def frame_bytes(config: Mapping[str, Any], settings: Settings, positions: int | None = None) -> int:
    """Return what one frame of a vision pass takes at its widest moment.

    That is a block's first linear layer and the activation behind it: two tensors of the
    intermediate width beside a few of the hidden width.

    Args:
        config: the model's.
        settings: for the type of the vision half.
        positions: patches of a frame, where they depend on its size; None: as the config says.
    """
    vision = config.get("vision_config", {})
    hidden = int(vision.get("hidden_size") or vision.get("embed_dim") or 1024)
    inner, dtype = int(vision.get("intermediate_size") or 4 * hidden), settings.vision.vision_dtype
    wide = (2 * inner + 4 * hidden) * ITEM_BYTES[dtype] + raised_bytes(settings, dtype, inner)
    return (positions or positions_of(vision)) * wide


def prefill_bytes(config: Mapping[str, Any], settings: Settings, row_tokens: int) -> int:
    """Return what the prefill of one row takes at its widest moment, in a block's MLP."""
    text = _text(config)
    hidden, dtype = int(text["hidden_size"]), settings.language.compute_dtype
    inner = int(text.get("intermediate_size") or 4 * hidden)
    wide = (3 * inner + 4 * hidden) * ITEM_BYTES[dtype] + raised_bytes(settings, dtype, inner)
    return row_tokens * wide


def raised_bytes(settings: Settings, dtype: str, width: int) -> int:
    """Return what a row of a product takes besides where it is raised: its input in float32."""
    if dtype != "bfloat16" or processor().multiplies_bf16 or pick_device(settings.device) != "cpu":
        return 0
    return width * ITEM_BYTES["float32"]


def logit_bytes(config: Mapping[str, Any]) -> int:
    """Return one row's logits in float32; only the last position has any."""
    return int(_text(config)["vocab_size"]) * 4


def kv_bytes(config: Mapping[str, Any], settings: Settings, row_tokens: int) -> int:
    """Return the keys and values of one row at its full length, for all its beams."""
    tokens = row_tokens + settings.generation.max_new_tokens
    return kv_bytes_a_token(config, settings) * tokens * settings.generation.num_beams


def prefix_bytes(config: Mapping[str, Any], settings: Settings, row_tokens: int) -> int:
    """Return the keys and values of a clip's video part, as `--keep-prefix` keeps them."""
    tokens = row_tokens - QUESTION_TOKENS - 1  # it ends before the last index
    return kv_bytes_a_token(config, settings) * tokens


def kv_bytes_a_token(config: Mapping[str, Any], settings: Settings) -> int:
    """Return the keys and values of one token in all layers."""
    text = _text(config)
    heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
    kv_heads = int(text.get("num_key_value_heads") or text.get("num_multi_query_heads") or heads)
    head_width = int(text.get("head_dim") or hidden // heads)
    item_bytes = ITEM_BYTES[settings.language.compute_dtype]
    return 2 * int(text["num_hidden_layers"]) * kv_heads * head_width * item_bytes


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text: Mapping[str, Any] = config.get("text_config") or config
    return text


def positions_of(vision: Mapping[str, Any]) -> int:
    """Tokens that the vision half sees of one frame, where the config says so."""
    if "num_positions" in vision:
        return int(vision["num_positions"])
    size, patch = vision.get("image_size", 448), vision.get("patch_size", 14)
    size, patch = (side[0] if isinstance(side, list) else side for side in (size, patch))
    return int(size // patch) ** 2 + 1


def tokens_per_frame(config: Mapping[str, Any]) -> int | None:
    """Return the feature rows of one frame where the config alone says so: CogVLM2's."""
    vision = config.get("vision_config", {})
    if "num_multi_query_heads" not in config or "patch_size" not in vision:
        return None
    side = int(vision["image_size"]) // int(vision["patch_size"]) // 2
    return side * side + 2


def row_tokens(config: Mapping[str, Any], frames: int) -> int:
    """Return the prompt's tokens for a clip, an index a frame and a short question included.

    Where the config does not tell a family's rows a frame, every patch counts: an upper bound.
    """
    per_frame = tokens_per_frame(config) or positions_of(config.get("vision_config", {}))
    return 1 + frames * (per_frame + 1) + QUESTION_TOKENS


def feature_bytes(
    config: Mapping[str, Any], settings: Settings, frames: int, cache_point: str
) -> int | None:
    """Return the uncompressed features of a clip, where the config tells their shape."""
    per_frame = tokens_per_frame(config)
    if per_frame is None:
        return None
    width = int(_text(config)["hidden_size"])
    if cache_point == "pooled":  # without the two vectors that the projector adds
        per_frame, width = per_frame - 2, int(config["vision_config"]["hidden_size"])
    return frames * per_frame * width * ITEM_BYTES[settings.vision.vision_dtype]
