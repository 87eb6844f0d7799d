"""The shape of `tiny`, its start, and one pass over a batch."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from cogcache.models.cogvlm2.configuration import CogVLM2VideoConfig
from cogcache.models.cogvlm2.modeling import CogVLM2VideoForConditionalGeneration
from cogcache.models.cogvlm2.slots import merge_features
from tiny_training.batches import Batch
from tiny_training.tokenizer import BOS, EOS, PAD, padded_size

IMAGE_SIZE, PATCH_SIZE = 56, 14
POST_NORM_START = 0.2
"""First weight of the vision blocks' norms: at 1 the untrained blocks drown what they add to."""


def build_config(tokenizer: Tokenizer) -> CogVLM2VideoConfig:
    """Return the sizes of `tiny`; the decoder's are multiples of 64, as NF4 on the CPU needs."""
    return CogVLM2VideoConfig(
        vocab_size=padded_size(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_multi_query_heads=2,
        initializer_range=0.08,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_heads": 4,
            "num_positions": (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
    )


def build_model(config: CogVLM2VideoConfig) -> CogVLM2VideoForConditionalGeneration:
    """Return an untrained model; torch's seed decides its weights."""
    model = CogVLM2VideoForConditionalGeneration(config)
    for layer in model.model.vision.transformer.layers:
        nn.init.constant_(layer.input_layernorm.weight, POST_NORM_START)
        nn.init.constant_(layer.post_attention_layernorm.weight, POST_NORM_START)
    return model


def answer_logits(
    model: CogVLM2VideoForConditionalGeneration, batch: Batch, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logits [A, V] of all answers' tokens and the true ones [A].

    The parts of the model are called here one by one because the mask keeps the questions
    apart, and because only answers need the output head.
    """
    embeds = merge_features(
        model.get_input_embeddings()(batch.input_ids),
        features,
        batch.token_type_ids,
    )
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    wanted = batch.labels >= 0
    return model.lm_head(hidden[wanted]), batch.labels[wanted]


@torch.no_grad()
def exact_answers(
    model: CogVLM2VideoForConditionalGeneration, batch: Batch, names: list[str]
) -> dict[str, float]:
    """Return for each attribute the share of clips whose answer is right in every token."""
    features = model.get_video_features(batch.frames.pixel_values).pooler_output
    logits, labels = answer_logits(model, batch, features)
    wrong = torch.zeros(batch.labels.shape, dtype=torch.bool)
    wrong[batch.labels >= 0] = logits.argmax(-1) != labels
    return {
        name: 1 - (wrong & (batch.attributes == number)).any(1).float().mean().item()
        for number, name in enumerate(names)
    }
