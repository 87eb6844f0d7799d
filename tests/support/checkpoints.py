"""Small random checkpoints in the published CogVLM2-Video layout."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
MINI = GOLDEN / "cogvlm2-mini"
INDEX = "model.safetensors.index.json"
UNKNOWN, BOS, EOS, PAD = range(4)
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
"""Characters that the tokenizer knows; each is one token."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a small model. By default every matrix of the decoder suits 4 bits."""

    width: int = 64
    inner: int = 128
    layers: int = 2
    heads: int = 4
    key_value_heads: int = 2
    vocabulary: int = 128
    vision_width: int = 32
    vision_inner: int = 64
    vision_layers: int = 2
    image_size: int = 56

    @property
    def patches(self) -> int:
        return (self.image_size // 14) ** 2

    def config(self) -> dict[str, Any]:
        """Return a config.json with the keys of the published one."""
        return {
            "architectures": ["CogVLMVideoForCausalLM"],
            "auto_map": {
                "AutoConfig": "configuration_cogvlm.CogVLMConfig",
                "AutoModelForCausalLM": "modeling_cogvlm.CogVLMVideoForCausalLM",
            },
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "hidden_act": "silu",
            "hidden_size": self.width,
            "initializer_range": 0.02,
            "intermediate_size": self.inner,
            "max_position_embeddings": 2048,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_multi_query_heads": self.key_value_heads,
            "pad_token_id": PAD,
            "rms_norm_eps": 1e-05,
            "template_version": "base",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.43.1",
            "use_cache": True,
            "vision_config": {
                "dropout_prob": 0.0,
                "hidden_act": "gelu",
                "hidden_size": self.vision_width,
                "image_size": self.image_size,
                "in_channels": 3,
                "intermediate_size": self.vision_inner,
                "layer_norm_eps": 1e-06,
                "num_heads": 4,
                "num_hidden_layers": self.vision_layers,
                "num_positions": self.patches + 1,
                "patch_size": 14,
            },
            "vocab_size": self.vocabulary,
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by its published name."""
        return {**self._language_shapes(), **self._vision_shapes()}

    def _language_shapes(self) -> dict[str, tuple[int, ...]]:
        head = self.width // self.heads
        fused = self.width + 2 * self.key_value_heads * head
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.width),
            "model.norm.weight": (self.width,),
            "lm_head.weight": (self.vocabulary, self.width),
        }
        for layer in (f"model.layers.{index}." for index in range(self.layers)):
            attention, mlp = f"{layer}self_attn.", f"{layer}mlp.language_mlp."
            shapes |= {
                f"{attention}rotary_emb.inv_freq": (head // 2,),
                f"{attention}language_expert_query_key_value.weight": (fused, self.width),
                f"{attention}language_expert_dense.weight": (self.width, self.width),
                f"{mlp}gate_proj.weight": (self.inner, self.width),
                f"{mlp}up_proj.weight": (self.inner, self.width),
                f"{mlp}down_proj.weight": (self.width, self.inner),
                f"{layer}input_layernorm.weight": (self.width,),
                f"{layer}post_attention_layernorm.weight": (self.width,),
            }
        return shapes

    def _vision_shapes(self) -> dict[str, tuple[int, ...]]:
        wide = self.vision_width
        shapes: dict[str, tuple[int, ...]] = {
            "boi": (1, 1, self.width),
            "eoi": (1, 1, self.width),
            "patch_embedding.cls_embedding": (1, wide),
            "patch_embedding.position_embedding.weight": (self.patches + 1, wide),
            "patch_embedding.proj.weight": (wide, 3, 14, 14),
            "patch_embedding.proj.bias": (wide,),
            "conv.weight": (wide, wide, 2, 2),
            "conv.bias": (wide,),
            "linear_proj.linear_proj.weight": (self.width, wide),
            "linear_proj.norm1.weight": (self.width,),
            "linear_proj.norm1.bias": (self.width,),
            "linear_proj.dense_h_to_4h.weight": (self.inner, self.width),
            "linear_proj.gate_proj.weight": (self.inner, self.width),
            "linear_proj.dense_4h_to_h.weight": (self.width, self.inner),
        }
        linears = {
            "attention.query_key_value": (3 * wide, wide),
            "attention.dense": (wide, wide),
            "mlp.fc1": (self.vision_inner, wide),
            "mlp.fc2": (wide, self.vision_inner),
        }
        for layer in (f"transformer.layers.{index}." for index in range(self.vision_layers)):
            for name, shape in linears.items():
                shapes[f"{layer}{name}.weight"] = shape
                shapes[f"{layer}{name}.bias"] = shape[:1]
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (wide,)
        return {f"model.vision.{name}": shape for name, shape in shapes.items()}


SMALL = Sizes()


def random_tensors(sizes: Sizes = SMALL, seed: int = 0) -> dict[str, Tensor]:
    """Return float32 tensors of `sizes`; large enough that inputs decide what comes out."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator)
        if name.endswith("inv_freq"):
            return 500_000.0 ** -(torch.arange(shape[0]) / shape[0])
        if "norm" in name and name.endswith("weight"):
            return 1 + 0.1 * values
        if name.endswith(("embed_tokens.weight", "boi", "eoi")) or len(shape) == 1:
            return 0.5 * values
        fan_in = values[0].numel()
        return values * 1.5 * fan_in**-0.5

    return {name: tensor(name, shape) for name, shape in sizes.shapes().items()}


def published_shard(name: str, last_layer: int) -> int:
    """Return the shard of a tensor where four are laid out as the published six are.

    1: embedding and layers; 2: the last layer's norms, the final norm and the first part of the
    vision half; 3: the rest of it; 4: the output head. So the vision half is in 2 and 3.
    """
    if name.startswith("lm_head"):
        return 4
    if name.startswith("model.vision."):
        return 2 if name.startswith(("model.vision.b", "model.vision.p")) else 3
    ends = (f"model.layers.{last_layer}.input", f"model.layers.{last_layer}.post", "model.norm")
    return 2 if name.startswith(ends) else 1


def shard_name(number: int, count: int = 4) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def write_checkpoint(
    folder: Path,
    sizes: Sizes = SMALL,
    *,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    sharded: bool = True,
    tokenizer: bool = True,
    tensors: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint and return its folder.

    Args:
        folder: made if it is not there.
        sizes: of the model.
        dtype: of every tensor.
        seed: of the weights.
        sharded: four shards with an index, see `published_shard`; else one file.
        tokenizer: with a tokenizer.json.
        tensors: in place of random ones.
        config: keys of config.json to change.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = random_tensors(sizes, seed) if tensors is None else tensors
    state = {name: tensor.to(dtype).contiguous() for name, tensor in given.items()}
    (folder / "config.json").write_text(json.dumps({**sizes.config(), **(config or {})}, indent=1))
    if tokenizer:
        write_tokenizer(folder / "tokenizer.json")
    if sharded:
        weight_map = {n: shard_name(published_shard(n, sizes.layers - 1)) for n in state}
        write_shards(folder, state, weight_map)
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_shards(folder: Path, state: Mapping[str, Tensor], weight_map: Mapping[str, str]) -> None:
    """Write tensors into the shards that `weight_map` names, and the index."""
    for shard in set(weight_map.values()):
        part = {name: state[name] for name, its in weight_map.items() if its == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(weight_map)}
    (folder / INDEX).write_text(json.dumps(index))


def copy_golden(folder: Path) -> Path:
    """Write the golden checkpoint with a tokenizer into a folder, and return it."""
    shutil.copytree(MINI, folder, ignore=shutil.ignore_patterns("golden.safetensors"))
    write_tokenizer(folder / "tokenizer.json")
    return folder


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer that makes one token of each character; ids as in `Sizes.config`."""
    words = ["<unknown>", "<bos>", "<eos>", "<pad>", *CHARACTERS]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.save(str(path))


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint by their names on disk."""
    return {k: v for shard in folder.glob("*.safetensors") for k, v in load_file(shard).items()}


def names_in(shard: Path) -> set[str]:
    with safe_open(shard, framework="pt") as file:
        return set(file.keys())


def published_tensors() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return shard and shape of every tensor of THUDM/cogvlm2-llama3-caption, all bfloat16."""
    content = json.loads((GOLDEN / "published-tensors.json").read_text())
    return {
        template.format(index): (shard_name(shard, 6), tuple(shape))
        for shard, template, first, last, shape in content["tensors"]
        for index in range(first, last + 1)
    }


def write_published_headers(folder: Path) -> Path:
    """Write the flagship's checkpoint without a weight: files of its sizes that take no room."""
    folder.mkdir()
    config = (GOLDEN / "published-config.json").read_text()
    (folder / "config.json").write_text(config)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, (shard, shape) in published_tensors().items():
        shards.setdefault(shard, {})[name] = shape
    for shard, tensors in shards.items():
        header: dict[str, object] = {}
        end = 0
        for name, shape in tensors.items():
            begin, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (begin, end)}
        text = json.dumps(header).encode()
        with (folder / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)  # a hole: no block of the disk is taken
    index = {name: shard for shard, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder
