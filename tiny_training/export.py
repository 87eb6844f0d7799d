"""Write a trained model in the published CogVLM2-Video layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from cogcache.models.cogvlm2.configuration import CogVLM2VideoConfig
from cogcache.models.cogvlm2.modeling import CogVLM2VideoForConditionalGeneration
from tiny_training.tokenizer import BOS, EOS, PAD

Tensors = dict[str, Tensor]

_PUBLISHED_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_multi_query_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "vocab_size",
    "num_hidden_layers",
    "hidden_act",
    "template_version",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
_VISION_KEYS = (
    "dropout_prob",
    "hidden_act",
    "hidden_size",
    "image_size",
    "in_channels",
    "intermediate_size",
    "layer_norm_eps",
    "num_heads",
    "num_hidden_layers",
    "num_positions",
    "patch_size",
)


def export(model: CogVLM2VideoForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, tokenizer, and bfloat16 weights in four shards with an index.

    As in the published checkpoint, the first shard holds language tensors only, the second
    both halves', the third vision tensors only, and the last the output head.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    _write_shards(_shards(model), folder)
    _write_json(folder / "config.json", _published_config(model.config))
    ids = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in _SPECIALS.items()}
    _write_json(folder / "generation_config.json", {**ids, "do_sample": False})
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {f"{name}_token": token for name, token in _SPECIALS.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(folder / "tokenizer_config.json", settings)


_SPECIALS = {"bos": BOS, "eos": EOS, "pad": PAD}


def published_names(model: CogVLM2VideoForConditionalGeneration) -> Tensors:
    """Return the weights in bfloat16 under the published names, in the published order."""
    ours = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    decoder = "model.language_model."
    published = {"model.embed_tokens.weight": ours[f"{decoder}embed_tokens.weight"]}
    for number in range(model.config.num_hidden_layers):
        layer = {
            name.removeprefix(f"{decoder}layers.{number}."): tensor
            for name, tensor in ours.items()
            if name.startswith(f"{decoder}layers.{number}.")
        }
        layer = _fused(layer, ours[f"{decoder}rotary_emb.inv_freq"])
        published |= {f"model.layers.{number}.{name}": tensor for name, tensor in layer.items()}
    published["model.norm.weight"] = ours[f"{decoder}norm.weight"]
    published |= {name: t for name, t in ours.items() if name.startswith("model.vision.")}
    published["lm_head.weight"] = ours["lm_head.weight"]
    return published


def _fused(layer: Tensors, inv_freq: Tensor) -> Tensors:
    attention = [layer[f"self_attn.{part}_proj.weight"] for part in "qkv"]
    fused = {
        "self_attn.rotary_emb.inv_freq": inv_freq.clone(),
        "self_attn.language_expert_query_key_value.weight": torch.cat(attention),
        "self_attn.language_expert_dense.weight": layer["self_attn.o_proj.weight"],
    }
    for part in ("gate_proj", "up_proj", "down_proj"):
        fused[f"mlp.language_mlp.{part}.weight"] = layer[f"mlp.{part}.weight"]
    for part in ("input_layernorm", "post_attention_layernorm"):
        fused[f"{part}.weight"] = layer[f"{part}.weight"]
    return fused


def _shards(model: CogVLM2VideoForConditionalGeneration) -> list[Tensors]:
    tensors = published_names(model)
    mixed_from = _first(tensors, f"model.layers.{model.config.num_hidden_layers - 1}.")
    middle = model.config.vision_config.num_hidden_layers // 2
    vision_from = _first(tensors, f"model.vision.transformer.layers.{middle}.")
    cuts = [0, mixed_from, vision_from, len(tensors) - 1, len(tensors)]
    items = list(tensors.items())
    return [dict(items[start:end]) for start, end in pairwise(cuts)]


def _first(names: Iterable[str], prefix: str) -> int:
    return next(place for place, name in enumerate(names) if name.startswith(prefix))


def _write_shards(shards: list[Tensors], folder: Path) -> None:
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(whole, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)
        weight_map |= dict.fromkeys(tensors, name)
    size = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def _published_config(config: CogVLM2VideoConfig) -> dict[str, object]:
    return {
        "architectures": ["CogVLMVideoForCausalLM"],
        **{key: getattr(config, key) for key in _PUBLISHED_KEYS},
        "vision_config": {key: getattr(config.vision_config, key) for key in _VISION_KEYS},
        "torch_dtype": "bfloat16",
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
