"""CogVLM2-Video with another Llama for a decoder.

It reads the vision tower's pooled features through a new projector of its own width.

Imported where weights are made; it needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from cogcache.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

DECODER: Final = "model.language_model."
"""Where the decoder is in the class."""
PROJECTOR: Final = ("model.vision.linear_proj.", "model.vision.boi", "model.vision.eoi")
"""What a decoder of another width needs anew."""
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
ENDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
"""What of a config names tokens."""
_SIZES: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
)


def read_decoder(folder: str) -> PreTrainedModel:
    """Load a causal language model that is to read features.

    Args:
        folder: of its checkpoint, or a hub id.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        ConfigError: it is not of Llama's kind.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        problem = f"{folder} cannot be read as a language model: {error}"
        raise CheckpointError(problem, "give a folder or a hub id of a Llama") from error
    if config.model_type != "llama" or getattr(config, "attention_bias", False):
        problem = f"{folder} is of the kind {config.model_type}, not a plain Llama"
        raise ConfigError(problem, "give a Llama-like causal model, such as Llama 3.2 or SmolLM2")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model


def config_with(teacher: Mapping[str, Any], decoder: PreTrainedModel) -> dict[str, Any]:
    """Return the teacher's config with the sizes of another decoder in it."""
    told = decoder.config.to_dict()
    config = deepcopy(dict(teacher)) | {name: told[name] for name in _SIZES}
    eos = told["eos_token_id"]
    pad = told.get("pad_token_id")
    config |= {
        "num_multi_query_heads": told["num_key_value_heads"],
        "pad_token_id": pad if pad is not None else (eos[0] if isinstance(eos, list) else eos),
        "rope_parameters": told["rope_parameters"],
        "head_dim": told.get("head_dim"),
        "tie_word_embeddings": False,
    }
    config.pop("text_config", None)
    return config


def state_with(student: PreTrainedModel, decoder: PreTrainedModel, seed: int) -> dict[str, Tensor]:
    """Return a language half's tensors by their names in memory: the decoder's, and a projector.

    The projector is drawn small: at first the decoder shall hardly notice features.

    Args:
        student: the class on meta, with the config of `config_with`.
        decoder: the other model.
        seed: of the projector.
    """
    state = {
        DECODER + name.removeprefix("model."): tensor.detach()
        for name, tensor in decoder.state_dict().items()
        if name.startswith("model.")
    }
    head: Any = decoder.get_output_embeddings()
    state["lm_head.weight"] = head.weight.detach().clone()
    rotary: Any = decoder.get_submodule("model.rotary_emb")
    state[f"{DECODER}rotary_emb.inv_freq"] = rotary.inv_freq.detach().float()
    generator = torch.Generator().manual_seed(seed)
    for name, meta in student.state_dict().items():
        if name.startswith(PROJECTOR):
            fan_in = meta.shape[-1]
            drawn = torch.randn(meta.shape, generator=generator) / fan_in**0.5
            is_norm = ".norm1." in name
            drawn = torch.ones(meta.shape) if is_norm and name.endswith("weight") else drawn
            drawn = torch.zeros(meta.shape) if is_norm and name.endswith("bias") else drawn
            small = 0.02 if "dense_4h_to_h" in name or "oi" in name.rpartition(".")[2] else 1.0
            state[name] = (small * drawn).to(torch.bfloat16)
    return state


def same_tokenizer(one: Path, other: Path) -> bool:
    """Say whether two checkpoints give every text the same tokens."""
    import json

    def vocabulary(folder: Path) -> Any:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content.get("model"), content.get("added_tokens")

    return bool(vocabulary(one) == vocabulary(other))
