"""What vLLM is shown of a checkpoint: its decoder alone, as a text model of vLLM's own.

The view is a folder with two files: `config.json` of the decoder, and `cogcache.json`, which says
of each weight in which file it lies under which name. A tensor that is not listed is never read,
so that no vision weight can be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cogcache.errors import ConfigError
from cogcache.models import Family, stored_method
from cogcache.settings import Language

if TYPE_CHECKING:
    from cogcache.models import WholeModel

TENSORS: Final = "cogcache.json"
DECODERS: Final = {
    "llama": ("llama", "CogcacheLlama"),
    "mistral": ("mistral", "CogcacheLlama"),
    "qwen2": ("qwen2", "CogcacheQwen2"),
    "qwen2_vl_text": ("qwen2", "CogcacheQwen2"),
    "qwen2_5_vl_text": ("qwen2", "CogcacheQwen2"),
    "qwen3": ("qwen3", "CogcacheQwen3"),
    "qwen3_vl_text": ("qwen3", "CogcacheQwen3"),
}
"""Kinds of decoder: what transformers calls them, vLLM's kind, and our class for vLLM."""
FAMILIES: Final = (
    "cogvlm2",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava_onevision",
    "llava_next_video",
    "video_llava",
    "internvl",
    "smolvlm",
    "video_llama_3",
    "llava",
    "idefics3",
    "mistral3",
)
"""Families that were compared with transformers, token by token (`make test-vllm`)."""
_FUSED: Final = ".language_expert_query_key_value."


@dataclass(frozen=True)
class View:
    """What a worker is told to load.

    Args:
        config: of the decoder, as a text model.
        tensors: by the name that vLLM knows: the file, and the name in it.
        bytes_by_file: what is read of each file.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, str]]
    bytes_by_file: Mapping[str, int]

    @classmethod
    def of(cls, family: Family, language: Language) -> View:
        """Describe the decoder of a family's checkpoint; no weight is read.

        Raises:
            ConfigError: its decoder is of a kind that was not shown to be right.
            CheckpointError: a shard is missing or cut short.
        """
        from cogcache.models import WholeModel  # imports torch

        whole = WholeModel.of(family.checkpoint, **family.config_overrides(language))
        names = whole.partition.names("language")
        family.checkpoint.tensors(names)
        decoder = _path_of_decoder(whole)
        files = family.checkpoint.stored(names)
        tensors = {}
        for name in names:
            target = _target(name, whole.partition.targets[name], decoder)
            if target is not None:
                tensors[target] = (str((family.checkpoint.folder / files[name]).resolve()), name)
        read = family.checkpoint.bytes_by_file([name for _, name in tensors.values()])
        quantized = _quantized(language.quantization) or _stored(family, decoder)
        return cls(_config(family, whole) | quantized, tensors, read)

    def write(self, folder: Path) -> None:
        """Write the view into a folder that is there."""
        (folder / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        content = json.dumps({"tensors": self.tensors})
        (folder / TENSORS).write_text(content, encoding="utf-8")


def _path_of_decoder(whole: WholeModel) -> str:
    decoder = whole.meta.get_decoder()
    paths: dict[int, str] = {id(module): path for path, module in whole.meta.named_modules()}
    return paths[id(decoder)]


def _target(name: str, target: str, decoder: str) -> str | None:
    """Return what vLLM's text model calls a tensor; None for what a decoder has not."""
    if target.startswith(f"{decoder}."):
        target = f"model.{target.removeprefix(f'{decoder}.')}"
        return target.replace(".q_proj.", ".qkv_proj.") if _FUSED in name else target
    return target if target.startswith("lm_head.") else None


def _config(family: Family, whole: WholeModel) -> dict[str, Any]:
    """Return the decoder's config as a text model's, with what our classes want to know."""
    text = whole.config.get_text_config(decoder=True)
    config: dict[str, Any] = text.to_dict()
    kind = str(config.get("model_type"))
    if kind not in DECODERS:
        problem = f"--backend vllm knows no decoder of the kind {kind!r}"
        raise ConfigError(problem, "docs/families.md lists what it runs; leave --backend out")
    _check_attention(config)
    model_type, architecture = DECODERS[kind]
    for name in ("auto_map", "dtype", "torch_dtype", "quantization_config", "transformers_version"):
        config.pop(name, None)
    config |= {"model_type": model_type, "architectures": [architecture]}
    config["tie_word_embeddings"] = bool(getattr(whole.config, "tie_word_embeddings", False))
    config["cogcache"] = {"levels": _num_levels(family), **_rotary(whole)}
    if axes := _axes(family, config):
        rope = {key: value for key, value in config["rope_parameters"].items() if key != "type"}
        config["rope_parameters"] = {**rope, **axes}
    return config


def _check_attention(config: Mapping[str, Any]) -> None:
    """Refuse decoders whose tokens see a part of those before them: never compared."""
    kinds = config.get("layer_types") or ()
    is_mistral = config["model_type"] == "mistral"
    if "sliding_attention" in kinds or (is_mistral and config.get("sliding_window")):
        problem = "--backend vllm was not shown to be right for attention in a sliding window"
        raise ConfigError(problem, "leave --backend out")


def _quantized(kind: str) -> dict[str, Any]:
    """Return what makes vLLM hold the decoder's weights as our own package does it."""
    return {"quantization_config": {"quant_method": "cogcache_int8"}} if kind == "int8" else {}


def _stored(family: Family, decoder: str) -> dict[str, Any]:
    """Return how the checkpoint says that its weights are quantised, by the names of the view."""
    told = family.checkpoint.config.get("quantization_config")
    if stored_method(family.checkpoint) is None or not told:
        return {}
    lists = ("ignore", "modules_to_not_convert")
    renamed = {
        key: [_module(name, decoder) for name in told[key] or ()] for key in lists if key in told
    }
    return {"quantization_config": {**told, **renamed}}


def _module(name: str, decoder: str) -> str:
    """Return what the view calls a module that the whole model's config names."""
    for prefix in (f"{decoder}.", "language_model.model.", "model.language_model."):
        if name.startswith(prefix):
            return f"model.{name.removeprefix(prefix)}"
    return name.removeprefix("language_model.")


def _num_levels(family: Family) -> int:
    """Return how many deep-stack levels go with the features."""
    vision = family.full_config().get("vision_config") or {}
    return len(vision.get("deepstack_visual_indexes") or ())


def _axes(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes vLLM take positions from us, on three axes; nothing for a plain line.

    A single line with positions of our own is put on all three axes alike, which is the same.
    """
    if family.name == "cogvlm2":
        _check_rope(config["rope_parameters"])
        width = config["hidden_size"] // config["num_attention_heads"]
        half = (config.get("head_dim") or width) // 2
        third = half // 3
        return {"mrope_section": [half - 2 * third, third, third]}
    rope = config["rope_parameters"]
    if "mrope_section" not in rope:
        return {}
    interleaved = {"mrope_interleaved": True} if family.name == "qwen3_vl" else {}
    return {"mrope_section": list(rope["mrope_section"]), "rope_type": "default", **interleaved}


def _check_rope(rope: Mapping[str, Any]) -> None:
    if rope.get("rope_type", "default") != "default":
        problem = (
            f"--backend vllm has no shared positions with rotary scaling {rope['rope_type']!r}"
        )
        raise ConfigError(problem, "leave --backend out")


def _rotary(whole: WholeModel) -> dict[str, Any]:
    """Return in which precision rotary tables are built, and from which frequencies."""
    rotary = whole.meta.get_decoder().rotary_emb
    if not hasattr(rotary, "frequencies"):
        return {"rotary_dtype": "float32"}
    frequencies = rotary.frequencies().tolist()
    return {"rotary_dtype": whole.config.rotary_dtype, "inv_freq": frequencies}
