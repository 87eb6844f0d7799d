"""Checkpoints whose decoder is stored quantised, as other tools write them, made of small ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import WholeModel

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Parts = dict[str, Tensor]


def in_int8(weight: Tensor) -> tuple[Parts, Tensor]:
    """Return a weight in 8 bits with a scale a row, and the numbers that it then has."""
    scales = weight.float().abs().amax(dim=1, keepdim=True) / 127
    rounded = (weight.float() / scales).round()
    return {"weight": rounded.to(torch.int8), "weight_scale": scales}, rounded * scales


def in_awq(weight: Tensor) -> tuple[Parts, Tensor]:
    """Return a weight in 4 bits as AWQ lays it out, and the numbers that it then has."""
    grouped = weight.float().reshape(len(weight), -1, GROUP)
    low, high = grouped.amin(dim=2, keepdim=True), grouped.amax(dim=2, keepdim=True)
    scales = ((high - low) / 15).clamp(min=1e-6).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    rounded = (grouped / scales + zeros).round().clamp(0, 15)
    numbers = ((rounded - zeros) * scales).reshape(weight.shape)
    parts = {
        "qweight": _packed(rounded.reshape(weight.shape).T),
        "qzeros": _packed(zeros[..., 0].T),
        "scales": scales[..., 0].T.half().contiguous(),
    }
    return parts, numbers


def _packed(numbers: Tensor) -> Tensor:
    """Put eight numbers of 4 bits into each int32, along the last dimension, in AWQ's order."""
    eights = numbers.reshape(len(numbers), -1, 8)[..., list(AWQ_ORDER)].to(torch.int64)
    packed = (eights << (4 * torch.arange(8))).sum(dim=-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


INT8_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token",
                "dynamic": True,
            },
        }
    },
    "ignore": ["lm_head", "re:.*visual.*"],
}  # fmt: skip
AWQ_CONFIG = {
    "quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm",
    "modules_to_not_convert": ["lm_head", "visual"],
}  # fmt: skip
METHODS: dict[str, tuple[Callable[[Tensor], tuple[Parts, Tensor]], dict[str, Any]]] = {
    "compressed-tensors": (in_int8, INT8_CONFIG),
    "awq": (in_awq, AWQ_CONFIG),
}


def store(folder: Path, method: str) -> dict[str, Tensor]:
    """Store a checkpoint's decoder quantised; return the numbers that its weights then have."""
    quantize, config = METHODS[method]
    whole = WholeModel.of(Checkpoint.open(str(folder)))
    decoder = {
        name
        for name in whole.partition.language
        if ".layers." in name and name.endswith("proj.weight")
    }
    numbers: dict[str, Tensor] = {}
    weight_map: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        for name in decoder & tensors.keys():
            parts, numbers[name] = quantize(tensors.pop(name))
            layer = name.removesuffix("weight")
            tensors |= {f"{layer}{part}": each for part, each in parts.items()}
        save_file(tensors, file)
        weight_map |= dict.fromkeys(tensors, file.name)
    if (index := folder / "model.safetensors.index.json").exists():
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
    return numbers
