"""The slots of a prompt: which features go where."""

from __future__ import annotations

import torch
from torch import Tensor

from cogcache.models.cogvlm2.configuration import CogVLM2VideoConfig


def merge_features(
    inputs_embeds: Tensor, features: Tensor | list[Tensor], token_type_ids: Tensor | None
) -> Tensor:
    """Put features into their slots, in order.

    Args:
        inputs_embeds: token embeddings. Shape [B, L, D].
        features: [T, N, D] over the frames of all rows, or a list of such, a clip each.
        token_type_ids: 1 where a feature belongs. Shape [B, L].

    Raises:
        ValueError: the slots are not as many as the feature rows.
    """
    if token_type_ids is None:
        raise ValueError("features were given without token_type_ids, which say where they go")
    rows = feature_rows(features)
    slots = token_type_ids.bool()
    if int(slots.sum()) != rows.shape[0]:
        raise ValueError(f"{int(slots.sum())} slots in the prompt, {rows.shape[0]} feature rows")
    rows = rows.to(inputs_embeds.device, inputs_embeds.dtype)
    return inputs_embeds.masked_scatter(slots[..., None].to(inputs_embeds.device), rows)


def feature_rows(features: Tensor | list[Tensor]) -> Tensor:
    """Return features, [T, N, D] or a list of such, as one row a slot: [slots, D]."""
    parts = [features] if isinstance(features, Tensor) else features
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def rows_of_features(
    features: Tensor | list[Tensor], token_type_ids: Tensor, config: CogVLM2VideoConfig
) -> list[Tensor]:
    """Return what belongs to each row of a batch out of features of all of them.

    Frames are counted by the slots that they take, whatever the cache point is.
    """
    frames = [features] if isinstance(features, Tensor) else features
    counts = (token_type_ids.sum(-1) // config.tokens_per_frame).tolist()
    return list(torch.split(torch.cat(frames), counts))
