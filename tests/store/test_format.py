"""Holds docs/format.md to what the code does, by running what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from cogcache.keys import CaptionKey, FeatureKey, canonical_bytes, digest
from cogcache.store.format import TYPES
from cogcache.store.store import FeatureStore

FORMAT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)
KEY = "ab" * 32

EVERY_DTYPE = {
    name: torch.tensor([[0, 1], [2, 3]]).to(getattr(torch, name)) for name in sorted(TYPES)
}
EVERY_SHAPE = {
    "scalar": torch.tensor(1.5),
    "empty": torch.zeros(0, 3),
    "rows_of_nothing": torch.zeros(3, 0),
    "frames": torch.randn(5, 66, 4096).to(torch.bfloat16),
    "blocks": torch.randn(700_001),
}
ATTRIBUTES = {
    "text": "é",
    "start_s": -0.0,
    "timestamps_s": [0.0, 0.96],
    "frame_indices": [0, 24],
    "sampling": {"max_frames": 24, "window_s": 60.0, "more": [None, True, ""]},
    "end_s": None,
    "large": 2**80,
}


def read_by_the_example(path, tmp_path):
    program = tmp_path / "example.py"
    program.write_text(EXAMPLE, encoding="utf-8")
    run = [sys.executable, str(program), str(path)]
    return subprocess.run(run, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("compression", ["none", "zstd", "blosc2"])
@pytest.mark.parametrize("thumbnail", [None, b"a JPEG"])
def test_example_of_the_specification_proves_a_file(tmp_path, compression, thumbnail):
    store = FeatureStore.create_or_open(tmp_path / "cache")
    tensors = {**EVERY_DTYPE, **EVERY_SHAPE}
    store.write(KEY, tensors, ATTRIBUTES, thumbnail, compression=compression)
    said = read_by_the_example(store.path_of(KEY), tmp_path).splitlines()
    assert said[0] == "intact"
    assert "sampling = {'max_frames': 24, 'more': [None, True, ''], 'window_s': 60.0}" in said
    assert "bfloat16 bfloat16 [2, 2] mean 1.5" in said
    assert any(line.startswith("frames bfloat16 [5, 66, 4096]") for line in said)


def test_example_of_the_specification_finds_damage(tmp_path):
    store = FeatureStore.create_or_open(tmp_path / "cache")
    store.write(KEY, {"features": torch.arange(1000)}, {})
    content = bytearray(store.path_of(KEY).read_bytes())
    content[content.index(torch.arange(1000).numpy().tobytes()) + 8] ^= 1
    (tmp_path / "damaged.h5").write_bytes(content)
    assert read_by_the_example(tmp_path / "damaged.h5", tmp_path).startswith("damaged")


@pytest.mark.parametrize("key", [FeatureKey, CaptionKey])
def test_every_field_of_a_key_is_specified(key):
    title = "feature" if key is FeatureKey else "caption"
    (table,) = re.findall(rf"\| field of a {title} key .*?\n((?:\|.*\n)+)", FORMAT)
    named = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()))
    assert named == [field.name for field in fields(key)]


def test_example_of_the_canonical_encoding_is_true():
    assert canonical_bytes({"a": 1}).hex(" ").replace(" ", "") in FORMAT.replace(" ", "")
    assert digest({"a": 1}) in FORMAT
