"""Small random checkpoints of transformers' video models, each with its own processor.

A tokenizer of single bytes, the class' own processor and a model of two narrow layers, written
with `save_pretrained` as on the hub. Weights are drawn so wide that other frames and other words
give other tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 384
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
"""Every matrix suits 4 bits: columns in blocks of 64, rows in blocks of 32."""
CHAT = """{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] -%}
{%- if part['type'] == 'video' -%}VIDEO{%- elif part['type'] == 'image' -%}IMAGE
{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "<|im_start|>", "<|im_end|>")

Config = dict[str, Any]
Ids = Callable[[str], int]


@dataclass(frozen=True)
class Animal:
    """How to make a checkpoint of one family.

    Args:
        config: of the model, without the sizes of the text part; takes ids by token.
        processor: takes the tokenizer and the chat template.
        tokens: special tokens, by the attribute that the tokenizer gets for each; names with a
            leading `_` are tokens without an attribute.
        video: how the chat template writes a clip.
    """

    name: str
    model: str
    config: Callable[[Ids], Config]
    processor: Callable[[PreTrainedTokenizerFast, str], Any]
    tokens: Mapping[str, str]
    video: str
    image: str = "<image>"
    text: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (32, 48)
    other_size: tuple[int, int] = (48, 32)
    frames: tuple[int, int] = (8, 4)
    takes_videos: bool = True
    times: tuple[str, ...] = ()
    """What the prompt of the second clip, seconds 7 and on of a video, says of its times."""
    beams: Literal["both", "cache", "neither"] = "both"
    """What can be run with beams: the model in one piece and its language half, or less."""
    ties: bool = True
    """Whether its class can tie the output head to the embeddings."""

    def chat_template(self) -> str:
        return CHAT.replace("VIDEO", self.video).replace("IMAGE", self.image)

    def write(
        self, folder: Path, *, tied: bool = False, seed: int = 0, sentencepiece: bool = False
    ) -> Path:
        """Write the checkpoint into a folder."""
        made = sentencepiece_tokenizer() if sentencepiece else byte_tokenizer()
        tokenizer = with_tokens(made, self.tokens)
        processor = self.processor(tokenizer, self.chat_template())
        processor.save_pretrained(folder)
        cls = getattr(transformers, self.model)
        ids = tokenizer.convert_tokens_to_ids
        config = cls.config_class(**self.config(ids), tie_word_embeddings=tied)
        torch.manual_seed(seed)
        model = cls(config)
        widen(model)
        model.generation_config.eos_token_id = 1
        model.generation_config.pad_token_id = 2
        model.save_pretrained(folder)
        return folder


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer in which every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """Return a tokenizer of Llama's kind: blanks as \u2581, pieces, and bytes for all else."""
    pieces = ["\u2581", *(chr(code) for code in range(33, 127))]
    merges = [('"', ":"), ("{", '"'), ('"', ","), ("}", "}"), ("\u2581", '"')]
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *map("".join, merges)]
    vocabulary = {token: index for index, token in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    prepend, blanks = normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([prepend, blanks])
    back = decoders.Replace("\u2581", " ")
    tokenizer.decoder = decoders.Sequence(
        [back, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def with_tokens(tokenizer: Tokenizer, tokens: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer as transformers has it, with what a family adds."""
    attributes = {name: token for name, token in tokens.items() if not name.startswith("_")}
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=attributes,
    )
    made.add_tokens([*SPECIAL, *tokens.values()], special_tokens=True)
    assert len(made) <= VOCABULARY
    return made


def widen(model: torch.nn.Module) -> None:
    """Draw every matrix anew, so wide that a signal keeps its size on the way through.

    Embeddings stay small: what a token sees is to weigh more than what it is.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                if re.search(r"\b[qk]_?(layer)?norm", name):
                    parameter.fill_(3.0)  # where these are of size one, everything is seen alike
                continue
            fused = "experts" in name and parameter.ndim == 3
            fan_in = parameter.shape[-1] if fused else math.prod(parameter.shape[1:])
            std = 0.2 if "embed_tokens" in name else 1.5 / math.sqrt(fan_in)
            parameter.normal_(0.0, std)


def text_config(**changes: Any) -> Config:
    return {**TEXT, **changes}


MROPE = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
}
QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def qwen_ids(ids: Ids) -> Config:
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def qwen2_vl(ids: Ids) -> Config:
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {"text_config": text_config(**MROPE), "vision_config": vision, **qwen_ids(ids)}


def qwen2_5_vision(width: int = 32) -> Config:
    return {
        "depth": 2,
        "hidden_size": width,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 32,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }


def qwen2_5_vl(ids: Ids) -> Config:
    return {"text_config": text_config(**MROPE), "vision_config": qwen2_5_vision(), **qwen_ids(ids)}


def qwen3_vision(**changes: Any) -> Config:
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        **changes,
    }


def qwen3_vl(ids: Ids) -> Config:
    vision = qwen3_vision(deepstack_visual_indexes=[0, 1])
    return {"text_config": text_config(**MROPE), "vision_config": vision, **qwen_ids(ids)}


def qwen_processor(
    name: str, videos: str, images: str = "Qwen2VLImageProcessor", patch: int = 8
) -> Any:
    def made(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Any:
        sizes = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64 * 16}
        common = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2, "size": sizes}
        return getattr(transformers, name)(
            image_processor=getattr(transformers, images)(**common),
            tokenizer=tokenizer,
            video_processor=getattr(transformers, videos)(**common),
            chat_template=chat_template,
        )

    return made


def qwen(
    name: str, model: str, config: Callable[[Ids], Config], processor: str, videos: str, **more: Any
) -> Animal:
    return Animal(
        name,
        model,
        config,
        qwen_processor(processor, videos),
        QWEN_TOKENS,
        QWEN_VIDEO,
        QWEN_IMAGE,
        **more,
    )


QWEN2_VL = qwen(
    "qwen2_vl",
    "Qwen2VLForConditionalGeneration",
    qwen2_vl,
    "Qwen2VLProcessor",
    "Qwen2VLVideoProcessor",
)
QWEN2_5_VL = qwen(
    "qwen2_5_vl",
    "Qwen2_5_VLForConditionalGeneration",
    qwen2_5_vl,
    "Qwen2_5_VLProcessor",
    "Qwen2VLVideoProcessor",
)
QWEN3_VL = qwen(
    "qwen3_vl",
    "Qwen3VLForConditionalGeneration",
    qwen3_vl,
    "Qwen3VLProcessor",
    "Qwen3VLVideoProcessor",
    times=("<7.5 seconds>", "<9.5 seconds>"),
)


def clip_vision(size: int = 32, **changes: Any) -> Config:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": 8,
        **changes,
    }


LLAVA_TOKENS = {"image_token": "<image>", "video_token": "<video>"}


def llava_ids(ids: Ids) -> Config:
    return {"image_token_index": ids("<image>"), "video_token_index": ids("<video>")}


def llava_onevision(ids: Ids) -> Config:
    return {
        "vision_config": clip_vision(model_type="siglip_vision_model"),
        "text_config": text_config(model_type="qwen2"),
        "image_grid_pinpoints": [[32, 32]],
        **llava_ids(ids),
    }


def llava_onevision_processor(tokenizer: Any, chat_template: str) -> Any:
    size = {"height": 32, "width": 32}
    return transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=[[32, 32]]
        ),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chat_template,
    )


def llava_next_video(ids: Ids) -> Config:
    return {
        "vision_config": clip_vision(),
        "text_config": text_config(model_type="llama"),
        "image_grid_pinpoints": [[32, 32]],
        "image_seq_length": 16,
        "video_seq_length": 4,
        **llava_ids(ids),
    }


def llava_next_video_processor(tokenizer: Any, chat_template: str) -> Any:
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return transformers.LlavaNextVideoProcessor(
        video_processor=transformers.LlavaNextVideoVideoProcessor(**sizes),
        image_processor=transformers.LlavaNextImageProcessor(
            **sizes, image_grid_pinpoints=[[32, 32]]
        ),
        tokenizer=tokenizer,
        chat_template=chat_template,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def video_llava(ids: Ids) -> Config:
    return {
        "vision_config": clip_vision(),
        "text_config": text_config(model_type="llama"),
        "image_seq_length": 16,
        "video_seq_length": 17,
        **llava_ids(ids),
    }


def video_llava_processor(tokenizer: Any, chat_template: str) -> Any:
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return transformers.VideoLlavaProcessor(
        image_processor=transformers.VideoLlavaImageProcessor(**sizes),
        video_processor=transformers.VideoLlavaVideoProcessor(**sizes),
        tokenizer=tokenizer,
        chat_template=chat_template,
        patch_size=8,
        num_additional_image_tokens=1,
    )


LLAVA_ONEVISION = Animal(
    "llava_onevision",
    "LlavaOnevisionForConditionalGeneration",
    llava_onevision,
    llava_onevision_processor,
    LLAVA_TOKENS,
    "<video>",
)
LLAVA_NEXT_VIDEO = Animal(
    "llava_next_video",
    "LlavaNextVideoForConditionalGeneration",
    llava_next_video,
    llava_next_video_processor,
    LLAVA_TOKENS,
    "<video>",
)
VIDEO_LLAVA = Animal(
    "video_llava",
    "VideoLlavaForConditionalGeneration",
    video_llava,
    video_llava_processor,
    LLAVA_TOKENS,
    "<video>",
)


def internvl(ids: Ids) -> Config:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": [32, 32],
        "patch_size": [8, 8],
    }
    return {
        "vision_config": vision,
        "text_config": text_config(model_type="qwen2"),
        "image_token_id": ids("<IMG_CONTEXT>"),
        "image_seq_length": 4,
    }


def internvl_processor(tokenizer: Any, chat_template: str) -> Any:
    size = {"height": 32, "width": 32}
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=chat_template,
    )


INTERNVL = Animal(
    "internvl",
    "InternVLForConditionalGeneration",
    internvl,
    internvl_processor,
    {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "<video>\n",
    "<IMG_CONTEXT>\n",
)


def smolvlm(ids: Ids) -> Config:
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


def smolvlm_processor(tokenizer: Any, chat_template: str) -> Any:
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    video = transformers.SmolVLMVideoProcessor(
        **sizes, video_sampling={"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 32}}
    )
    return transformers.SmolVLMProcessor(
        image_processor=transformers.SmolVLMImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=video,
        image_seq_len=4,
        chat_template=chat_template,
    )


SMOLVLM = Animal(
    "smolvlm",
    "SmolVLMForConditionalGeneration",
    smolvlm,
    smolvlm_processor,
    {
        "image_token": "<image>",
        "video_token": "<video>",
        "fake_image_token": "<fake_token_around_image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
    },
    "<video>",
    times=("00:07:", "00:10:", "0:01:00"),
)


def video_llama_3(ids: Ids) -> Config:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_size": 8,
    }
    return {
        "vision_config": vision,
        "text_config": text_config(model_type="qwen2"),
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
    }


def video_llama_3_processor(tokenizer: Any, chat_template: str) -> Any:
    sizes = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64 * 16}
    return transformers.VideoLlama3Processor(
        image_processor=transformers.VideoLlama3ImageProcessor(
            patch_size=8, merge_size=2, size=sizes
        ),
        tokenizer=tokenizer,
        video_processor=transformers.VideoLlama3VideoProcessor(
            patch_size=8, merge_size=2, size=sizes
        ),
        chat_template=chat_template,
    )


VIDEO_LLAMA_3 = Animal(
    "video_llama_3",
    "VideoLlama3ForConditionalGeneration",
    video_llama_3,
    video_llama_3_processor,
    QWEN_TOKENS,
    "<|video_pad|>",
    "<|image_pad|>",
    times=("Time 7.0s:", "Time 10.0s:"),
    beams="cache",
)


GLM_TOKENS = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "_a": "<|begin_of_image|>",
    "_b": "<|end_of_image|>",
    "_c": "<|begin_of_video|>",
    "_d": "<|end_of_video|>",
}
GLM_VIDEO = "<|begin_of_video|><|video|><|end_of_video|>"
GLM_IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"


def glm_ids(ids: Ids) -> Config:
    return {
        "image_token_id": ids("<|image|>"),
        "video_token_id": ids("<|video|>"),
        "image_start_token_id": ids("<|begin_of_image|>"),
        "image_end_token_id": ids("<|end_of_image|>"),
        "video_start_token_id": ids("<|begin_of_video|>"),
        "video_end_token_id": ids("<|end_of_video|>"),
    }


def glm_vision(**changes: Any) -> Config:
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "image_size": 32,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        **changes,
    }


def glm4v(ids: Ids) -> Config:
    return {"text_config": text_config(**MROPE), "vision_config": glm_vision(), **glm_ids(ids)}


GLM4V = Animal(
    "glm4v",
    "Glm4vForConditionalGeneration",
    glm4v,
    qwen_processor("Glm4vProcessor", "Glm4vVideoProcessor", "Glm4vImageProcessor"),
    GLM_TOKENS,
    GLM_VIDEO,
    GLM_IMAGE,
    times=("<|end_of_image|>7", "<|end_of_image|>9"),
    beams="neither",
)
