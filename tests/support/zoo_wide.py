"""Small random checkpoints of further classes, which the derived family runs as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from zoo import (
    GLM_IMAGE,
    GLM_TOKENS,
    GLM_VIDEO,
    MROPE,
    QWEN_IMAGE,
    QWEN_TOKENS,
    QWEN_VIDEO,
    Animal,
    Config,
    Ids,
    clip_vision,
    glm_ids,
    glm_vision,
    qwen,
    qwen2_5_vision,
    qwen3_vision,
    qwen_ids,
    qwen_processor,
    text_config,
)

LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "linear_attention", "full_attention"],
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 0],
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
    },
}
MOE = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}


def qwen3_5(ids: Ids) -> Config:
    return {"text_config": text_config(**LINEAR), "vision_config": qwen3_vision(), **qwen_ids(ids)}


def qwen3_5_moe(ids: Ids) -> Config:
    text = text_config(**LINEAR, **MOE, shared_expert_intermediate_size=64)
    return {"text_config": text, "vision_config": qwen3_vision(), **qwen_ids(ids)}


def qwen3_vl_moe(ids: Ids) -> Config:
    vision = qwen3_vision(deepstack_visual_indexes=[0, 1])
    return {"text_config": text_config(**MROPE, **MOE), "vision_config": vision, **qwen_ids(ids)}


QWEN3_5 = qwen(
    "qwen3_5",
    "Qwen3_5ForConditionalGeneration",
    qwen3_5,
    "Qwen3VLProcessor",
    "Qwen3VLVideoProcessor",
    times=("<7.5 seconds>", "<9.5 seconds>"),
)
QWEN3_5_MOE = qwen(
    "qwen3_5_moe",
    "Qwen3_5MoeForConditionalGeneration",
    qwen3_5_moe,
    "Qwen3VLProcessor",
    "Qwen3VLVideoProcessor",
    times=("<7.5 seconds>", "<9.5 seconds>"),
)
QWEN3_VL_MOE = qwen(
    "qwen3_vl_moe",
    "Qwen3VLMoeForConditionalGeneration",
    qwen3_vl_moe,
    "Qwen3VLProcessor",
    "Qwen3VLVideoProcessor",
    times=("<7.5 seconds>", "<9.5 seconds>"),
)


# GLM turns half of each head only.
HALF = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.5,
    }
}


def glm4v_moe(ids: Ids) -> Config:
    text = text_config(
        **HALF,
        moe_intermediate_size=64,
        num_experts_per_tok=2,
        n_routed_experts=4,
        n_shared_experts=1,
        first_k_dense_replace=1,
    )
    return {"text_config": text, "vision_config": glm_vision(), **glm_ids(ids)}


def glm46v(ids: Ids) -> Config:
    text = text_config(model_type="glm4v_text", **HALF)
    return {
        "text_config": text,
        "vision_config": {"model_type": "glm4v_vision", **glm_vision()},
        **glm_ids(ids),
    }


def glm_ocr(ids: Ids) -> Config:
    return {"text_config": text_config(**HALF), "vision_config": glm_vision(), **glm_ids(ids)}


def glm(name: str, model: str, config: Callable[[Ids], Config], kind: str, *times: str) -> Animal:
    processor = qwen_processor(f"{kind}Processor", f"{kind}VideoProcessor", f"{kind}ImageProcessor")
    return Animal(
        name,
        model,
        config,
        processor,
        GLM_TOKENS,
        GLM_VIDEO,
        GLM_IMAGE,
        times=times,
        beams="neither",
    )


GLM4V_MOE = glm(
    "glm4v_moe",
    "Glm4vMoeForConditionalGeneration",
    glm4v_moe,
    "Glm4v",
    "<|end_of_image|>7",
    "<|end_of_image|>9",
)
GLM46V = glm(
    "glm46v", "Glm46VForConditionalGeneration", glm46v, "Glm46V", "7.0 seconds", "9.0 seconds"
)
GLM_OCR = glm(
    "glm_ocr", "GlmOcrForConditionalGeneration", glm_ocr, "Glm46V", "7.0 seconds", "9.0 seconds"
)


def ernie(ids: Ids) -> Config:
    text = text_config(
        moe_intermediate_size=[64, 64],
        moe_k=2,
        moe_num_experts=4,
        moe_num_shared_experts=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
    )
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_merge_size": 2,
    }
    names = (
        "image_token",
        "image_start_token",
        "image_end_token",
        "video_token",
        "video_start_token",
        "video_end_token",
    )
    return {
        "text_config": text,
        "vision_config": vision,
        **{f"{name}_id": ids(ERNIE_TOKENS[name]) for name in names},
    }


ERNIE_TOKENS = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}


def ernie_processor(tokenizer: Any, chat_template: str) -> Any:
    common = {
        "patch_size": 8,
        "merge_size": 2,
        "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
    }
    return transformers.Ernie4_5_VLMoeProcessor(
        image_processor=transformers.Ernie4_5_VLMoeImageProcessor(**common),
        tokenizer=tokenizer,
        video_processor=transformers.Ernie4_5_VLMoeVideoProcessor(
            **common, temporal_patch_size=2, draw_on_frames=False
        ),
        chat_template=chat_template,
    )


ERNIE = Animal(
    "ernie4_5_vl_moe",
    "Ernie4_5_VLMoeForConditionalGeneration",
    ernie,
    ernie_processor,
    ERNIE_TOKENS,
    "Video 1:<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>",
    "Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
)


GEMMA_TOKENS = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}


def gemma3(ids: Ids) -> Config:
    return {
        "text_config": text_config(
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=16,
        ),
        "vision_config": clip_vision(model_type="siglip_vision_model"),
        "mm_tokens_per_image": 4,
        "image_token_index": ids("<image_soft_token>"),
        "boi_token_index": ids("<start_of_image>"),
        "eoi_token_index": ids("<end_of_image>"),
    }


def gemma3_processor(tokenizer: Any, chat_template: str) -> Any:
    return transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        chat_template=chat_template,
        image_seq_length=4,
    )


GEMMA3 = Animal(
    "gemma3",
    "Gemma3ForConditionalGeneration",
    gemma3,
    gemma3_processor,
    GEMMA_TOKENS,
    "<start_of_image>",
    "<start_of_image>",
    takes_videos=False,
)


def gemma4(ids: Ids) -> Config:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": 8,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }
    return {
        "text_config": text_config(
            global_head_dim=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            vocab_size_per_layer_input=384,
            hidden_size_per_layer_input=32,
            use_bidirectional_attention="vision",
        ),
        "vision_config": vision,
        "audio_config": None,
        "image_token_id": ids("<|image|>"),
        "video_token_id": ids("<|video|>"),
        "boi_token_id": ids("<|image>"),
        "eoi_token_id": ids("<image|>"),
    }


def gemma4_processor(tokenizer: Any, chat_template: str) -> Any:
    common = {"patch_size": 8, "max_soft_tokens": 70, "pooling_kernel_size": 2}
    return transformers.Gemma4Processor(
        feature_extractor=transformers.Gemma4AudioFeatureExtractor(),
        image_processor=transformers.Gemma4ImageProcessor(**common),
        tokenizer=tokenizer,
        video_processor=transformers.Gemma4VideoProcessor(**common),
        chat_template=chat_template,
        image_seq_length=4,
    )


GEMMA4 = Animal(
    "gemma4",
    "Gemma4ForConditionalGeneration",
    gemma4,
    gemma4_processor,
    {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "_v": "<|video|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    },
    "<|video|>",
    "<|image|>",
    frames=(3, 2),
    times=("00:07 ", "00:08 "),
)


def lfm2_text(**changes: Any) -> Config:
    return text_config(
        model_type="lfm2",
        layer_types=["full_attention", "conv", "full_attention"],
        num_hidden_layers=3,
        block_ff_dim=128,
        block_auto_adjust_ff_dim=False,
        **changes,
    )


def lfm2_vl(ids: Ids) -> Config:
    vision = {
        "model_type": "siglip2_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "num_patches": 64,
    }
    return {
        "vision_config": vision,
        "text_config": lfm2_text(),
        "image_token_id": ids("<image>"),
        "projector_hidden_size": 64,
    }


def lfm2_processor(tokenizer: Any, chat_template: str) -> Any:
    images = transformers.Lfm2VlImageProcessor(
        do_image_splitting=False,
        use_thumbnail=False,
        min_image_tokens=4,
        max_image_tokens=16,
        encoder_patch_size=8,
        tile_size=32,
        min_tiles=1,
        max_tiles=1,
    )
    return transformers.Lfm2VlProcessor(images, tokenizer, chat_template=chat_template)


LFM2_VL = Animal(
    "lfm2_vl",
    "Lfm2VlForConditionalGeneration",
    lfm2_vl,
    lfm2_processor,
    {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    },
    "<image>",
    takes_videos=False,
)


def lfm3_vl(ids: Ids) -> Config:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "layer_types": ["conv", "full_attention"],
    }
    return {
        "vision_config": vision,
        "text_config": lfm2_text(),
        "projector_hidden_size": 64,
        **qwen_ids(ids),
    }


LFM3_VL = Animal(
    "lfm3_vl",
    "Lfm3VlForConditionalGeneration",
    lfm3_vl,
    qwen_processor("Lfm3VlProcessor", "Qwen3VLVideoProcessor"),
    QWEN_TOKENS,
    QWEN_VIDEO,
    QWEN_IMAGE,
    times=("<7.5 seconds>", "<9.5 seconds>"),
)


def exaone4_5(ids: Ids) -> Config:
    vision = {**qwen2_5_vision(), "num_key_value_heads": 2}
    text = text_config(
        model_type="exaone4", sliding_window=None, layer_types=["full_attention"] * 2
    )
    kept = ("image_token_id", "video_token_id")
    return {
        "vision_config": vision,
        "text_config": text,
        **{k: v for k, v in qwen_ids(ids).items() if k in kept},
    }


EXAONE4_5 = Animal(
    "exaone4_5",
    "Exaone4_5_ForConditionalGeneration",
    exaone4_5,
    qwen_processor("Exaone4_5_Processor", "Qwen2VLVideoProcessor"),
    QWEN_TOKENS,
    QWEN_VIDEO,
    QWEN_IMAGE,
)


MOLMO_TOKENS = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    **{
        f"_{index}": token
        for index, token in enumerate(
            [
                "<im_patch>",
                "<im_col>",
                "<im_start>",
                "<low_res_im_start>",
                "<frame_start>",
                "<im_end>",
                "<frame_end>",
                "<im_low>",
            ]
        )
    },
}


def molmo2(ids: Ids) -> Config:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "image_size": [32, 32],
        "patch_size": 8,
        "num_position_embeddings": 16,
    }
    adapter = {
        "vision_feature_layer": [-1, -2],
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "text_hidden_size": 64,
    }
    text = text_config(additional_vocab_size=8)
    return {
        "vision_config": vision,
        "adapter_config": adapter,
        "text_config": {k: v for k, v in text.items() if not k.endswith("token_id")},
        "image_start_token_id": ids("<im_start>"),
        "low_res_image_start_token_id": ids("<low_res_im_start>"),
        "image_end_token_id": ids("<im_end>"),
        "image_patch_id": ids("<im_patch>"),
        "frame_start_token_id": ids("<frame_start>"),
        "frame_end_token_id": ids("<frame_end>"),
    }


def molmo2_processor(tokenizer: Any, chat_template: str) -> Any:
    common = {"size": {"height": 32, "width": 32}, "patch_size": 8}
    return transformers.Molmo2Processor(
        image_processor=transformers.Molmo2ImageProcessor(**common),
        video_processor=transformers.Molmo2VideoProcessor(**common, pooling_size=[2, 2]),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )


MOLMO2 = Animal(
    "molmo2",
    "Molmo2ForConditionalGeneration",
    molmo2,
    molmo2_processor,
    MOLMO_TOKENS,
    "<|video|>",
    "<|image|>",
    times=("7.0 <frame_start>", "10.0 <frame_start>"),
    ties=False,
)


OMNI_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}


def omni_thinker(ids: Ids) -> Config:
    audio = {
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "d_model": 32,
        "output_dim": 64,
        "num_mel_bins": 128,
    }
    return {
        "vision_config": qwen2_5_vision(),
        "audio_config": audio,
        "text_config": text_config(**MROPE),
        "image_token_index": ids("<|IMAGE|>"),
        "audio_token_index": ids("<|AUDIO|>"),
        "video_token_index": ids("<|VIDEO|>"),
        "vision_start_token_id": ids("<|vision_bos|>"),
        "vision_end_token_id": ids("<|vision_eos|>"),
        "audio_start_token_id": ids("<|audio_bos|>"),
        "audio_end_token_id": ids("<|audio_eos|>"),
    }


def omni_processor(tokenizer: Any, chat_template: str) -> Any:
    common = {
        "patch_size": 8,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64 * 16},
    }
    return transformers.Qwen2_5OmniProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**common),
        video_processor=transformers.Qwen2VLVideoProcessor(**common),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=128),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )


OMNI = Animal(
    "qwen2_5_omni_thinker",
    "Qwen2_5OmniThinkerForConditionalGeneration",
    omni_thinker,
    omni_processor,
    OMNI_TOKENS,
    "<|vision_bos|><|VIDEO|><|vision_eos|>",
    "<|vision_bos|><|IMAGE|><|vision_eos|>",
    frames=(4, 2),
)


MINICPM_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}


def minicpm(ids: Ids) -> Config:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
    }
    return {
        "vision_config": vision,
        "text_config": text_config(model_type="qwen3_5_text", **LINEAR),
        "insert_layer_id": 1,
        "image_size": 64,
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
    }


def minicpm_processor(version: str) -> Any:
    def made(tokenizer: Any, chat_template: str) -> Any:
        common = {"patch_size": 8, "scale_resolution": 64, "max_slice_nums": 1}
        return getattr(transformers, f"MiniCPMV{version}Processor")(
            image_processor=transformers.MiniCPMV4_6ImageProcessor(**common),
            video_processor=transformers.MiniCPMV4_6VideoProcessor(**common),
            tokenizer=tokenizer,
            chat_template=chat_template,
        )

    return made


MINICPMV4_6 = Animal(
    "minicpmv4_6",
    "MiniCPMV4_6ForConditionalGeneration",
    minicpm,
    minicpm_processor("4_6"),
    MINICPM_TOKENS,
    "<|video_pad|>",
    "<|image_pad|>",
    frames=(3, 2),
    size=(64, 64),
    other_size=(64, 96),
)
MINICPMV4_7 = Animal(
    "minicpmv4_7",
    "MiniCPMV4_7ForConditionalGeneration",
    minicpm,
    minicpm_processor("4_7"),
    MINICPM_TOKENS,
    "<|video_pad|>",
    "<|image_pad|>",
    frames=(3, 2),
    size=(64, 64),
    other_size=(64, 96),
)


MINIMAX_TOKENS = {
    "_i": "]<]image[>[",
    "_v": "]<]video[>[",
    "_s": "]<]start of image[>[",
    "_e": "]<]end of image[>[",
}


def minimax(ids: Ids) -> Config:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
    }
    text = text_config(
        num_local_experts=4,
        num_experts_per_tok=2,
        dense_intermediate_size=128,
        shared_intermediate_size=64,
        rotary_dim=8,
        mlp_layer_types=["dense", "sparse"],
    )
    return {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": ids("]<]image[>["),
        "video_token_index": ids("]<]video[>["),
        "projector_hidden_size": 64,
    }


def minimax_processor(tokenizer: Any, chat_template: str) -> Any:
    common = {
        "patch_size": 8,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 256,
        "max_pixels": 64 * 64,
    }
    return transformers.MiniMaxM3VLProcessor(
        image_processor=transformers.MiniMaxM3VLImageProcessor(
            patch_size=8, merge_size=2, temporal_patch_size=2
        ),
        tokenizer=tokenizer,
        video_processor=transformers.MiniMaxM3VLVideoProcessor(**common),
        chat_template=chat_template,
    )


MINIMAX = Animal(
    "minimax_m3_vl",
    "MiniMaxM3SparseForConditionalGeneration",
    minimax,
    minimax_processor,
    MINIMAX_TOKENS,
    "]<]video[>[",
    "]<]image[>[",
    times=("7.0 seconds", "9.0 seconds"),
)

KIMI_TOKENS = {
    "image_token": "<|media_pad|>",
    "video_token": "<|kimi_k25_video_placeholder|>",
    "_b": "<|media_begin|>",
    "_c": "<|media_content|>",
    "_e": "<|media_end|>",
}


def kimi(ids: Ids) -> Config:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
    }
    text = text_config(
        model_type="deepseek_v3",
        num_key_value_heads=4,
        q_lora_rank=64,
        kv_lora_rank=64,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
        moe_intermediate_size=64,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    )
    return {
        "vision_config": vision,
        "text_config": text,
        "projection_hidden_size": 32,
        "image_token_id": ids("<|media_pad|>"),
        "video_token_id": ids("<|kimi_k25_video_placeholder|>"),
        "vision_start_token_id": ids("<|media_begin|>"),
        "vision_end_token_id": ids("<|media_end|>"),
    }


def kimi_processor(tokenizer: Any, chat_template: str) -> Any:
    common = {"patch_size": 8, "merge_size": 2, "size": {"max_height": 64, "max_width": 64}}
    return transformers.Kimi_K25Processor(
        image_processor=transformers.Kimi_K25ImageProcessor(patch_size=8, merge_size=2),
        tokenizer=tokenizer,
        video_processor=transformers.Kimi_K25VideoProcessor(**common),
        chat_template=chat_template,
    )


KIMI = Animal(
    "kimi_k25",
    "Kimi_K25ForConditionalGeneration",
    kimi,
    kimi_processor,
    KIMI_TOKENS,
    "<|kimi_k25_video_placeholder|>",
    "<|media_pad|>",
)
"""Its feature call fails on every video in transformers 5.23."""

COMPASS_TOKENS = {
    "image_token": "<|IMAGE_PAD|>",
    "video_token": "<|VIDEO_PAD|>",
    "vision_start_token": "<|VISION_START|>",
    "vision_end_token": "<|VISION_END|>",
}


def compass(ids: Ids) -> Config:
    layers = ["sliding_attention", "full_attention"]
    return {
        "text_config": text_config(
            sliding_window=16,
            layer_types=layers,
            rope_parameters=dict.fromkeys(layers, MROPE["rope_parameters"]),
        ),
        "vision_config": qwen3_vision(deepstack_visual_indexes=[0, 1]),
        "image_token_id": ids("<|IMAGE_PAD|>"),
        "video_token_id": ids("<|VIDEO_PAD|>"),
        "vision_start_token_id": ids("<|VISION_START|>"),
        "vision_end_token_id": ids("<|VISION_END|>"),
    }


COMPASS = Animal(
    "cohere_compass",
    "CohereCompassForConditionalGeneration",
    compass,
    qwen_processor(
        "CohereCompassProcessor", "CohereCompassVideoProcessor", "CohereCompassImageProcessor"
    ),
    COMPASS_TOKENS,
    "<|VISION_START|><|VIDEO_PAD|><|VISION_END|>",
    "<|VISION_START|><|IMAGE_PAD|><|VISION_END|>",
    times=("<7.5 seconds>", "<9.5 seconds>"),
)


def omni_moe(ids: Ids) -> Config:
    audio = {
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "d_model": 32,
        "output_dim": 64,
        "num_mel_bins": 128,
        "downsample_hidden_size": 16,
    }
    return {
        "vision_config": qwen3_vision(deepstack_visual_indexes=[0, 1]),
        "audio_config": audio,
        "text_config": text_config(**MROPE, **MOE),
        "image_token_id": ids("<|IMAGE|>"),
        "audio_token_id": ids("<|AUDIO|>"),
        "video_token_id": ids("<|VIDEO|>"),
        "vision_start_token_id": ids("<|vision_bos|>"),
        "vision_end_token_id": ids("<|vision_eos|>"),
        "audio_start_token_id": ids("<|audio_bos|>"),
    }


def omni_moe_processor(tokenizer: Any, chat_template: str) -> Any:
    common = {
        "patch_size": 8,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64 * 16},
    }
    return transformers.Qwen3OmniMoeProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**common),
        video_processor=transformers.Qwen2VLVideoProcessor(**common),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=128),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )


OMNI_MOE = Animal(
    "qwen3_omni_moe_thinker",
    "Qwen3OmniMoeThinkerForConditionalGeneration",
    omni_moe,
    omni_moe_processor,
    OMNI_TOKENS,
    "<|vision_bos|><|VIDEO|><|vision_eos|>",
    "<|vision_bos|><|IMAGE|><|vision_eos|>",
    frames=(4, 2),
)


def llava(ids: Ids) -> Config:
    return {
        "vision_config": clip_vision(),
        "text_config": text_config(model_type="llama"),
        "image_token_index": ids("<image>"),
        "image_seq_length": 16,
    }


def llava_processor(tokenizer: Any, chat_template: str) -> Any:
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(**sizes),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=chat_template,
        num_additional_image_tokens=1,
    )


LLAVA = Animal(
    "llava",
    "LlavaForConditionalGeneration",
    llava,
    llava_processor,
    {"image_token": "<image>"},
    "<image>",
    takes_videos=False,
)


def idefics3(ids: Ids) -> Config:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    return {
        "vision_config": vision,
        "text_config": text_config(model_type="llama"),
        "image_token_id": ids("<image>"),
        "scale_factor": 2,
    }


def idefics3_processor(tokenizer: Any, chat_template: str) -> Any:
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    return transformers.Idefics3Processor(
        image_processor=transformers.Idefics3ImageProcessor(**sizes),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=chat_template,
    )


IDEFICS3 = Animal(
    "idefics3",
    "Idefics3ForConditionalGeneration",
    idefics3,
    idefics3_processor,
    {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
    },
    "<image>",
    takes_videos=False,
)


def mistral3(ids: Ids) -> Config:
    vision = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
        "image_size": 64,
        "patch_size": 8,
    }
    return {
        "vision_config": vision,
        "text_config": text_config(model_type="mistral", sliding_window=None),
        "image_token_index": ids("[IMG]"),
        "spatial_merge_size": 2,
    }


def mistral3_processor(tokenizer: Any, chat_template: str) -> Any:
    return transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(patch_size=8, size={"longest_edge": 64}),
        tokenizer=tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=chat_template,
    )


MISTRAL3 = Animal(
    "mistral3",
    "Mistral3ForConditionalGeneration",
    mistral3,
    mistral3_processor,
    {"image_token": "[IMG]", "_b": "[IMG_BREAK]", "_e": "[IMG_END]"},
    "[IMG]",
    "[IMG]",
    takes_videos=False,
)
