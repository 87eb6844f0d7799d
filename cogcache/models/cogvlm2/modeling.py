"""CogVLM2-Video as a transformers class, filled straight from the published layout.

The decoder is transformers' own Llama. Three things differ from a plain Llama: frames share
position ids and the rotary tables may be built in bfloat16 (`positions`), and the checkpoint's
names and fused weights are converted while loading (`weight_names`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, LlamaModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)

from cogcache.models.cogvlm2 import weight_names  # noqa: F401  (registers the published names)
from cogcache.models.cogvlm2.configuration import CogVLM2VideoConfig
from cogcache.models.cogvlm2.positions import CogVLM2RotaryEmbedding, shared_position_ids
from cogcache.models.cogvlm2.slots import merge_features, rows_of_features
from cogcache.models.cogvlm2.vision import CogVLM2VisionTower, PatchEmbedding


class CogVLM2VideoPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about the family."""

    config: CogVLM2VideoConfig
    config_class = CogVLM2VideoConfig
    base_model_prefix = "model"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = False
    _no_split_modules = ("LlamaDecoderLayer", "TransformerLayer", "PatchEmbedding", "Projector")
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # The tables of layers 1 and up are copies of layer 0's; a checkpoint may hold none.
    _keys_to_ignore_on_load_unexpected = (
        r"language_model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$",
    )
    _keys_to_ignore_on_load_missing = (r"language_model\.rotary_emb\.inv_freq$",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CogVLM2RotaryEmbedding):
            inv_freq = module.frequencies()
            init.copy_(module.inv_freq, inv_freq)
            init.copy_(module.original_inv_freq, inv_freq)
        elif isinstance(module, PatchEmbedding):
            init.normal_(module.cls_embedding, std=self.config.initializer_range)
        elif isinstance(module, CogVLM2VisionTower):
            for vector in (module.boi, module.eoi):
                if vector is not None:  # in the other half
                    init.normal_(vector, std=self.config.initializer_range)


class CogVLM2VideoModel(CogVLM2VideoPreTrainedModel):
    """Vision tower and decoder without the output head."""

    def __init__(self, config: CogVLM2VideoConfig) -> None:
        super().__init__(config)
        self.vision = CogVLM2VisionTower(config)
        self.language_model = LlamaModel(config.text_config)
        self.language_model.rotary_emb = CogVLM2RotaryEmbedding(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the decoder's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """Return the Llama decoder."""
        return self.language_model

    def get_video_features(
        self, pixel_values_videos: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode frames; `pooler_output` holds the features the decoder reads.

        Args:
            pixel_values_videos: preprocessed frames of one clip or of several, one after the
                other. Shape [T, 3, S, S].
            **kwargs: ignored; transformers passes `return_dict`.

        Returns:
            `pooler_output` in the tower's dtype; at published sizes of shape [T, 66, 4096], or
            [T, 64, 1792] where `config.cache_point` is `pooled`.
        """
        features = self.vision.pool(pixel_values_videos.to(self.vision.conv.weight.dtype))
        if self.config.cache_point == "projected":
            features = self.vision.project(features)
        return BaseModelOutputWithPooling(pooler_output=features)

    def project(self, features: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Take features from the cache point to the decoder, clip by clip."""
        if self.config.cache_point == "projected":
            return features
        if isinstance(features, list):
            return [self.vision.project(each.to(self.vision.boi)) for each in features]
        return self.vision.project(features.to(self.vision.boi))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder over text and features; see `CogVLM2VideoForConditionalGeneration`."""
        if pixel_values_videos is not None and mm_encoder_outputs:
            raise ValueError("give either pixel_values_videos or mm_encoder_outputs, not both")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        video = (mm_encoder_outputs or {}).get("video")
        if video is None and pixel_values_videos is not None:
            video = self.get_video_features(pixel_values_videos)
        if video is not None:
            features = self.project(video.pooler_output)
            inputs_embeds = merge_features(inputs_embeds, features, token_type_ids)
        if position_ids is None and token_type_ids is not None:
            if past_key_values is not None and past_key_values.get_seq_length():
                # Types of the new tokens alone do not tell where the prompt ended.
                raise ValueError("position_ids must be given to go on from a KV cache")
            position_ids = shared_position_ids(token_type_ids, attention_mask)
        if attention_mask is None and past_key_values is None:
            # Without a mask transformers takes each repeated position for the start of a
            # packed sequence and would cut attention there.
            attention_mask = inputs_embeds.new_ones(inputs_embeds.shape[:2], dtype=torch.long)
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class CogVLM2VideoForConditionalGeneration(CogVLM2VideoPreTrainedModel, GenerationMixin):
    """CogVLM2-Video with its output head: captions from frames or from cached features.

    Example::

        model = CogVLM2VideoForConditionalGeneration.from_pretrained(folder)
        video = model.get_video_features(pixel_values_videos)
        tokens = model.generate(**prompt, mm_encoder_outputs={"video": video})
    """

    def __init__(self, config: CogVLM2VideoConfig) -> None:
        super().__init__(config)
        self.model = CogVLM2VideoModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def behind_cache_point(self) -> tuple[str, ...]:
        """Paths of what the language half has beside the decoder and its embeddings."""
        if self.config.cache_point == "projected":
            return ()
        return tuple(f"model.vision.{name}" for name in ("linear_proj", "boi", "eoi"))

    def get_input_embeddings(self) -> nn.Module:
        """Return the decoder's token embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embedding."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.lm_head

    def get_decoder(self) -> nn.Module:
        """Return the Llama decoder."""
        return self.model.get_decoder()

    def get_video_features(
        self, pixel_values_videos: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See `CogVLM2VideoModel.get_video_features`."""
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits; `generate` asks for those of the last position only.

        Args:
            input_ids: the prompt, `layout.build` makes it. Shape [B, L].
            pixel_values_videos: frames of all rows, one after the other. Shape [T, 3, S, S].
            attention_mask: 0 for left padding. Shape [B, L].
            position_ids: made from `token_type_ids` where not given. Shape [B, L].
            token_type_ids: 1 for a feature slot, 0 for text. Shape [B, L].
            past_key_values: the KV cache.
            inputs_embeds: in place of `input_ids`. Shape [B, L, D].
            use_cache: keep keys and values.
            logits_to_keep: how many last positions get logits; 0 for all.
            mm_encoder_outputs: `{"video": output}` in place of frames, where
                `output.pooler_output` is what `get_video_features` gave, or a list of such.
            **kwargs: passed on to the decoder.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values_videos=pixel_values_videos,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=self.lm_head(outputs.last_hidden_state[:, keep]),
            past_key_values=outputs.past_key_values,
        )

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        # transformers finds the rows' features by counting placeholder ids, but here padding
        # bears the same id. It also writes into the caller's object.
        outputs = model_kwargs.pop("mm_encoder_outputs", None)
        types: Any = model_kwargs.get("token_type_ids")
        ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if outputs and expand_size > 1:
            rows = rows_of_features(outputs["video"].pooler_output, types, self.config)
            expanded = [row for row in rows for _ in range(expand_size)]
            outputs = {"video": BaseModelOutputWithPooling(pooler_output=expanded)}
        return ids, {**model_kwargs, "mm_encoder_outputs": outputs}

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]
    ) -> Tensor:
        token_type_ids = model_kwargs.get("token_type_ids")
        if token_type_ids is None:
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        return shared_position_ids(token_type_ids, model_kwargs.get("attention_mask"))

    def _prepare_attention_mask_for_generation(
        self, inputs_tensor: Tensor, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> Tensor:
        # The slots bear the padding id, as published: a mask inferred from ids would hide the
        # video. Whoever pads gives a mask.
        return torch.ones(inputs_tensor.shape[:2], dtype=torch.long, device=inputs_tensor.device)
