"""A cache of `tiny` with captions to learn from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.selection import Selection
from cogcache.export.importing import import_captions
from cogcache.models.adapters import WEIGHTS
from cogcache.settings.settings import Settings, load_settings
from cogcache.stages.train import train

PROMPT = "Please describe this video in detail."
NUM_CLIPS = 8


def import_set(cache: Path, name: str, words: Callable[[str], str], **more: Any) -> None:
    with Catalog(cache / "catalog.sqlite") as catalog:
        clips = catalog.clips.rows()
    rows = [
        {"feature_key": clip["feature_key"], "prompt_name": "detail", "prompt": PROMPT,
         "caption": words(Path(clip["video"]).name)}
        for clip in clips
    ]  # fmt: skip
    file = cache.parent / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    import_captions(file, cache / "catalog.sqlite", name, **more)


QUICK = {
    "device": "cpu", "quantization": "none", "precision": "fp32", "tokens_per_batch": 400,
    "accumulate": 2, "max_steps": 4, "eval_every": 2, "save_every": 2, "samples": 1,
    "learning_rate": 1e-3, "max_new_tokens": 24, "eval_share": 0.2,
}  # fmt: skip


def settings(**changes: Any) -> Settings:
    return load_settings(None, {**QUICK, **changes})


def trained(cache: Path, out: Path, **changes: Any):
    return train(cache, out, settings(**changes), Selection(models=("other",)))


def weights(out: Path) -> Mapping[str, torch.Tensor]:
    return load_file(out / WEIGHTS)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
