"""What each stage will hold in memory, from config and headers alone, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogcache.config import Settings
from cogcache.models.identity import HalfIdentity
from cogcache.quantization import Quantization, quantized_bytes
from cogcache.runs import StagePlan

ITEM_BYTES = {"bfloat16": 2, "float32": 4}


def plan_vision(identity: HalfIdentity, config: Mapping[str, Any], settings: Settings) -> StagePlan:
    """Plan stage one.

    The widest moment of a block is its first linear layer and the activation behind it: two
    tensors of the intermediate width beside a few of the hidden width, for all frames of a pass.
    """
    item_bytes = ITEM_BYTES[settings.vision.vision_dtype]
    vision = config.get("vision_config", {})
    hidden, intermediate = _width(vision), int(vision.get("intermediate_size") or 0)
    wide = 2 * (intermediate or 4 * hidden) + 4 * hidden
    positions = _positions(vision) * settings.vision.frames_per_batch
    return StagePlan(identity.num_parameters * item_bytes, positions * wide * item_bytes)


def plan_language(
    identity: HalfIdentity, config: Mapping[str, Any], settings: Settings, row_tokens: int
) -> StagePlan:
    """Plan stage two for batches whose longest row has `row_tokens` tokens before the caption."""
    text = config.get("text_config") or config
    item_bytes = ITEM_BYTES[settings.language.compute_dtype]
    rows = settings.language.clips_per_batch * settings.generation.num_beams
    tokens = row_tokens + settings.generation.max_new_tokens
    heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
    kv_heads = int(text.get("num_key_value_heads") or text.get("num_multi_query_heads") or heads)
    head_width = int(text.get("head_dim") or hidden // heads)
    layers = int(text["num_hidden_layers"])
    cache_bytes = 2 * layers * kv_heads * head_width * item_bytes * tokens * rows
    wide = 3 * int(text.get("intermediate_size") or 4 * hidden) + 4 * hidden
    activations = rows * row_tokens * wide * item_bytes + rows * int(text["vocab_size"]) * 4
    return StagePlan(_language_weights(identity, text, settings), activations, cache_bytes)


def _language_weights(identity: HalfIdentity, text: Mapping[str, Any], settings: Settings) -> int:
    """Bytes of the language half: its layers quantised, embeddings and output head not."""
    language = settings.language
    item_bytes = ITEM_BYTES[language.compute_dtype]
    if language.quantization == "none":
        return identity.num_parameters * item_bytes
    hidden, vocabulary = int(text["hidden_size"]), int(text["vocab_size"])
    tied = bool(text.get("tie_word_embeddings"))
    kept = min(vocabulary * hidden * (1 if tied else 2), identity.num_parameters)
    quantized = (identity.num_parameters - kept) // hidden
    quantization = Quantization(kind=language.quantization, double_quant=language.double_quant)
    return kept * item_bytes + quantized_bytes(quantized, hidden, quantization)


def _width(vision: Mapping[str, Any]) -> int:
    return int(vision.get("hidden_size") or vision.get("embed_dim") or 1024)


def _positions(vision: Mapping[str, Any]) -> int:
    """Tokens that the vision half sees of one frame, where the config says so."""
    if "num_positions" in vision:
        return int(vision["num_positions"])
    size, patch = vision.get("image_size", 448), vision.get("patch_size", 14)
    size, patch = (side[0] if isinstance(side, list) else side for side in (size, patch))
    return int(size // patch) ** 2 + 1
