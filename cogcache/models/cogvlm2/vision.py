"""EVA2-CLIP-E, the 2 × 2 convolution and the gated projector: frames to features.

Follows the published forward pass, module names included, so that its tensors load by name.
Frames do not look at each other: any grouping of frames gives the same features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from cogcache.models.cogvlm2.configuration import CogVLM2VideoConfig, CogVLM2VisionConfig


class PatchEmbedding(nn.Module):
    """Patches, a class token and learned positions."""

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            config.in_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
        )
        self.cls_embedding = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[T, 3, S, S] to [T, 1 + patches, D]."""
        patches = self.proj(pixel_values).flatten(2).transpose(1, 2)
        cls = self.cls_embedding.expand(patches.shape[0], -1, -1)
        return torch.cat((cls, patches), dim=1) + self.position_embedding.weight


class Attention(nn.Module):
    """Full attention within one frame."""

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, L, D] to [T, L, D]."""
        num_frames, length, width = hidden_states.shape
        query, key, value = (
            self.query_key_value(hidden_states)
            .view(num_frames, length, 3, self.num_heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.dense(attended.transpose(1, 2).reshape(num_frames, length, width))


class Mlp(nn.Module):
    """Two layers with the exact (erf) GELU."""

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, L, D] to [T, L, D]."""
        return self.fc2(self.activation(self.fc1(hidden_states)))


class TransformerLayer(nn.Module):
    """A block that normalises after each part, not before (EVA2-CLIP-E)."""

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.mlp = Mlp(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, L, D] to [T, L, D]."""
        hidden_states = hidden_states + self.input_layernorm(self.attention(hidden_states))
        return hidden_states + self.post_attention_layernorm(self.mlp(hidden_states))


class Transformer(nn.Module):
    """The stack of blocks; there is no norm after the last."""

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(config) for _ in range(config.num_hidden_layers)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, L, D] to [T, L, D]."""
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


class Projector(nn.Module):
    """The GLU that takes vision features to the decoder's width."""

    def __init__(self, config: CogVLM2VideoConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.linear_proj = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.norm1 = nn.LayerNorm(width)
        self.gate_proj = nn.Linear(width, config.intermediate_size, bias=False)
        self.dense_h_to_4h = nn.Linear(width, config.intermediate_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, width, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, N, D_vision] to [T, N, D]."""
        hidden_states = functional.gelu(self.norm1(self.linear_proj(hidden_states)))
        gate = functional.silu(self.gate_proj(hidden_states))
        return self.dense_4h_to_h(gate * self.dense_h_to_4h(hidden_states))


class CogVLM2VisionTower(nn.Module):
    """Everything before the decoder: tower, pooling convolution, projector, boi and eoi."""

    def __init__(self, config: CogVLM2VideoConfig) -> None:
        super().__init__()
        vision_config = config.vision_config
        self.patch_embedding = PatchEmbedding(vision_config)
        self.transformer = Transformer(vision_config)
        self.conv = nn.Conv2d(
            vision_config.hidden_size, vision_config.hidden_size, kernel_size=2, stride=2
        )
        self.linear_proj = Projector(config)
        self.boi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Turn normalised frames [T, 3, S, S] into features [T, N + 2, D]; N = 64 at 224 px."""
        return self.project(self.pool(pixel_values))

    def pool(self, pixel_values: Tensor) -> Tensor:
        """Frames [T, 3, S, S] to pooled vision features [T, N, D_vision]."""
        hidden_states = self.transformer(self.patch_embedding(pixel_values))[:, 1:]
        num_frames, num_patches, width = hidden_states.shape
        side = int(num_patches**0.5)
        grid = hidden_states.view(num_frames, side, side, width).permute(0, 3, 1, 2)
        return self.conv(grid).flatten(2).transpose(1, 2)

    def project(self, pooled: Tensor) -> Tensor:
        """Pooled features [T, N, D_vision] to the decoder's [T, N + 2, D], boi and eoi added."""
        projected = self.linear_proj(pooled)
        boi = self.boi.expand(projected.shape[0], -1, -1)
        eoi = self.eoi.expand(projected.shape[0], -1, -1)
        return torch.cat((boi, projected, eoi), dim=1)
