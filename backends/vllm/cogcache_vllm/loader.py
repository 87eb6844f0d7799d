"""Reads the weights that a view lists, and no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

FORMAT = "cogcache"
VIEW = "cogcache.json"


@register_model_loader(FORMAT)
class ViewLoader(BaseModelLoader):
    """vLLM's loader for `load_format="cogcache"`.

    A file of a checkpoint may hold both halves: it is opened, and the tensors of the other half are
    passed by. What was read is noted on the model as `cogcache_read`.
    """

    def download_model(self, model_config: Any) -> None:
        """Nothing: cogcache has fetched what it lists."""

    def load_weights(self, model: Any, model_config: Any) -> None:
        """Fill a model; see `cogcache_vllm.models.FromCache.load_weights`."""
        listed = json.loads((Path(model_config.model) / VIEW).read_text())["tensors"]
        model.cogcache_read = {"num_tensors": 0, "num_bytes": 0}
        model.load_weights(_read(listed, model.cogcache_read))


def _read(listed: dict[str, list[str]], counts: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors file by file, by the names that vLLM knows, and count them."""
    by_file = sorted((file, name, target) for target, (file, name) in listed.items())
    for file, tensors in groupby(by_file, key=lambda each: each[0]):
        with safe_open(file, framework="pt") as opened:
            for _, name, target in tensors:
                tensor = opened.get_tensor(name)
                counts["num_tensors"] += 1
                counts["num_bytes"] += tensor.numel() * tensor.element_size()
                yield target, tensor
