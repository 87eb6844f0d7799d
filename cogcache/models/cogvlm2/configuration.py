"""The published CogVLM2-Video `config.json`, read as it is: flat, without a `model_type`."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, PreTrainedConfig

ROPE_THETA = 500_000.0
"""Rotary base of the decoder: hard-coded in the published code, absent from its config."""


@strict
class CogVLM2VisionConfig(PreTrainedConfig):
    """EVA2-CLIP-E as CogVLM2 uses it; the defaults are the published model's."""

    model_type = "cogvlm2_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1792
    intermediate_size: int = 15360
    num_hidden_layers: int = 63
    num_heads: int = 16
    num_positions: int = 257
    image_size: int = 224
    patch_size: int = 14
    in_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    dropout_prob: float = 0.0


@strict
class CogVLM2VideoConfig(PreTrainedConfig):
    """CogVLM2-Video: the flat published keys, and the two halves' configs made from them.

    `rotary_dtype` says in which precision the rotary tables are built. The published bf16 run
    builds them in bfloat16, positions and angles rounded, and was probably trained so; float32
    tables are nearer to Llama 3's own. `cache_point` says what `get_video_features` returns and the
    decoder is given: features behind the projector (`projected`), or before it (`pooled`), which
    makes the projector a part of the language half. `vision_config` may be left out only by a
    checkpoint that cogcache cannot use. `rope_parameters` and `head_dim` are those of a student
    with another decoder (docs/training.md); the published config has neither.
    """

    model_type = "cogvlm2_video"
    sub_configs = {"vision_config": CogVLM2VisionConfig, "text_config": LlamaConfig}  # noqa: RUF012

    vocab_size: int = 128256
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_multi_query_heads: int = 8
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    template_version: str = "chat"
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 128002
    bos_token_id: int | None = 128000
    eos_token_id: int | list[int] | None = 128001
    rotary_dtype: str = "bfloat16"
    cache_point: str = "projected"
    vision_config: Any = None
    text_config: Any = None
    rope_parameters: Any = None
    head_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the halves' configs; `text_config` always follows the flat keys."""
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = CogVLM2VisionConfig(**(self.vision_config or {}))
        self.text_config = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_multi_query_heads,
            hidden_act=self.hidden_act,
            max_position_embeddings=self.max_position_embeddings,
            initializer_range=self.initializer_range,
            rms_norm_eps=self.rms_norm_eps,
            rope_parameters=self.rope_parameters
            or {"rope_type": "default", "rope_theta": ROPE_THETA},
            head_dim=self.head_dim,
            tie_word_embeddings=False,
            pad_token_id=self.pad_token_id,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
        )
        super().__post_init__(**kwargs)

    @property
    def tokens_per_frame(self) -> int:
        """Feature rows of one frame: 2 × 2 pooled patches between boi and eoi; 66 at 224 px."""
        side: int = self.vision_config.image_size // self.vision_config.patch_size // 2
        return side * side + 2
