"""Tokens of vLLM against those of transformers, in float32, greedy: `make test-vllm`.

Small random checkpoints, a cache of each with clips that were encoded by its own vision half, and
the same requests to both backends. `COGCACHE_VLLM_PYTHON` names the Python of vLLM's environment.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_caches import NAMES, NUM_CLIPS, PYTHON, check, on_vllm, settings_of, tokens_of

from cogcache.generation.vllm.opening import opening_of
from cogcache.models import Family, WholeModel, open_family
from cogcache.models.derived import features as parts
from cogcache.settings import Settings
from cogcache.stages.captioning import vllm_half
from cogcache.stages.captioning.captioner import Captioner


@pytest.mark.parametrize("name", NAMES)
def test_tokens_equal_those_of_transformers(kept, name):
    of = kept(name)
    found, captioner = tokens_of(of.cache, on_vllm(of.model))
    check(of.expected, found)
    whole = WholeModel.of(captioner.stage.family.checkpoint)
    facts = captioner.half.decoder.facts
    assert facts["num_tensors"] == len({*whole.partition.language})
    assert captioner.half.decoder.cached_tokens > 0


def _opening_with(monkeypatch, **asked: object) -> None:
    """Have workers opened with more than cogcache asks for."""

    def changed(settings: Settings, view: Path) -> Any:
        made = opening_of(settings, view)
        return dataclasses.replace(made, asked={**made.asked, **asked})

    monkeypatch.setattr(vllm_half, "opening_of", changed)


@pytest.mark.parametrize(
    "asked", [{"prefix_caching": False}, {"chunk_tokens": 64}], ids=["no prefix cache", "chunks"]
)
@pytest.mark.parametrize("name", ["cogvlm2", "qwen3_vl"])
def test_neither_shared_prefixes_nor_chunks_of_a_prefill_change_a_token(
    kept, monkeypatch, name, asked
):
    of = kept(name)
    _opening_with(monkeypatch, **asked)
    found, captioner = tokens_of(of.cache, on_vllm(of.model))
    check(of.expected, found)
    decoder = captioner.half.decoder
    assert (decoder.cached_tokens > 0) == ("prefix_caching" not in asked)
    assert (decoder.peaks.pass_tokens <= 64) == ("chunk_tokens" in asked)
    assert decoder.prompt_tokens > 64 * len(found), "prompts fit into one chunk"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("cogvlm2", "qwen3_vl")])
def test_without_shared_prefixes_in_chunks_and_killed_all_others_give_the_same(
    kept, monkeypatch, name
):
    of = kept(name)
    _opening_with(monkeypatch, prefix_caching=False, chunk_tokens=64)
    found, captioner = tokens_of(of.cache, on_vllm(of.model), killing(NUM_CLIPS))
    check(of.expected, found)
    decoder = captioner.half.decoder
    assert (decoder.restarts, decoder.cached_tokens) == (1, 0)
    assert 0 < decoder.peaks.pass_tokens <= 64


def killing(*after: int) -> Callable[[Captioner, int], None]:
    """Return what kills the worker when so many captions are made."""

    def kill(captioner: Captioner, made: int) -> None:
        if made in after:
            os.kill(captioner.half.decoder.pid, 9)

    return kill


def test_a_worker_killed_in_the_middle_changes_no_token(kept):
    of = kept("cogvlm2")
    found, captioner = tokens_of(of.cache, on_vllm(of.model), killing(3, NUM_CLIPS * 2))
    check(of.expected, found)
    assert captioner.half.decoder.restarts == 2


def test_rotary_tables_in_bfloat16_are_the_same_on_both_sides(kept):
    of = kept("cogvlm2")
    rounded = {"rotary_dtype": "bfloat16"}
    expected, _ = tokens_of(of.cache, settings_of(of.model, **rounded))
    found, _ = tokens_of(of.cache, on_vllm(of.model, **rounded))
    check(expected, found)
    assert expected != of.expected


OWN_POSITIONS = """
import __future__, ast, json, sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace as Made
import numpy as np, torch
# vLLM's module imports torchvision, which this environment has not: its two methods are taken out.
file = Path(find_spec("vllm").origin).parent / "model_executor/models/qwen2_5_vl.py"
names = {"iter_mm_grid_thw", "get_mrope_input_positions"}
[model] = [each for each in ast.parse(file.read_text()).body
           if getattr(each, "name", "") == "Qwen2_5_VLForConditionalGeneration"]
methods = [each for each in model.body if getattr(each, "name", "") in names]
plain = __future__.annotations.compiler_flag
vllm = {"np": np, "torch": torch}
exec(compile(ast.Module(methods, []), str(file), "exec", plain), vllm)
found = []
for ids, offset, grid, vision in json.load(sys.stdin):
    model = Made(config=Made(vision_config=Made(**vision)))
    model.iter_mm_grid_thw = lambda items: vllm["iter_mm_grid_thw"](model, items)
    data = {"video_grid_thw": Made(data=torch.tensor(grid))}
    item = Made(modality="video", mm_position=Made(offset=offset), data=data)
    found.append(vllm["get_mrope_input_positions"](model, ids, [item])[0].tolist())
print()
print(json.dumps(found))
"""


def test_positions_that_vllm_would_count_itself_give_other_tokens(kept, monkeypatch):
    of = kept("qwen2_5_vl")
    family = open_family(settings_of(of.model))
    ours, rows = type(family).positions, {}

    def noted(self, row):
        rows[tuple(row.sequences["input_ids"].tolist())] = row
        return ours(self, row)

    monkeypatch.setattr(type(family), "positions", noted)
    tokens_of(of.cache, settings_of(of.model))
    own = _own_positions(family, [*rows.values()])

    def of_vllm(_, row):
        three = torch.tensor(own[tuple(row.sequences["input_ids"].tolist())])
        return torch.cat((torch.arange(row.length)[None], three))

    same = sum(torch.equal(of_vllm(None, row)[1:], ours(family, row)[-3:]) for row in rows.values())
    monkeypatch.setattr(type(family), "positions", of_vllm)
    found, _ = tokens_of(of.cache, on_vllm(of.model))
    equal = sum(found[key] == of.expected[key] for key in found)
    print(
        f"vLLM's own positions: {same} of {len(rows)} rows equal, {equal} of {len(found)} captions"
    )
    assert equal < len(found) / 2


def _own_positions(family, rows):
    """Return the positions that vLLM counts for rows of Qwen2.5-VL where nobody tells a rate."""
    vision = family.checkpoint.config["vision_config"]
    names = ("spatial_merge_size", "tokens_per_second")
    told = [
        [
            row.sequences["input_ids"].tolist(),
            int(family.slots(row).nonzero().min()),
            parts.extras([row.features.tensors], "cpu")["video_grid_thw"].reshape(-1)[:3].tolist(),
            {name: vision[name] for name in names if name in vision},
        ]
        for row in rows
    ]
    command = [PYTHON, "-c", OWN_POSITIONS]
    done = subprocess.run(
        command, input=json.dumps(told), capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return {tuple(ids): positions for (ids, *_), positions in zip(told, found, strict=True)}


def test_plain_positions_would_give_other_tokens(kept, monkeypatch):
    of = kept("cogvlm2")
    plain = lambda _, row: torch.arange(row.length)  # noqa: E731
    monkeypatch.setattr(type(open_family(settings_of(of.model))), "positions", plain)
    found, _ = tokens_of(of.cache, on_vllm(of.model))
    assert sum(found[key] == of.expected[key] for key in found) < len(found) / 2


@pytest.mark.parametrize("name", ["tiny", "golden", "cogvlm2", "qwen2_vl", "qwen3_vl", "internvl"])
def test_bfloat16_is_compared_and_promised_nothing(kept, name):
    of = kept(name)
    changes = {"compute_dtype": "bfloat16", "rotary_dtype": "bfloat16"}
    expected, _ = tokens_of(of.cache, settings_of(of.model, **changes))
    found, _ = tokens_of(of.cache, on_vllm(of.model, **changes))
    equal = sum(found[key] == expected[key] for key in expected)
    begin = sum(found[key][:16] == expected[key][:16] for key in expected)
    told = f"{equal} of {len(expected)} captions equal, {begin} in their first 16 tokens"
    print(f"{name} in bfloat16: {told}")
    assert found.keys() == expected.keys()


def test_a_family_without_its_vision_shards_is_captioned_all_the_same(kept, tmp_path):
    of = kept("cogvlm2")
    folder = tmp_path / "half"
    folder.mkdir()
    family: Family = open_family(settings_of(of.model))
    parts = WholeModel.of(family.checkpoint).partition
    needed = {*family.checkpoint.shards_of(parts.names("language"))}
    for file in Path(of.model).iterdir():
        if file.suffix != ".safetensors" or file.name in needed:
            (folder / file.name).symlink_to(file)
    assert len([*folder.glob("*.safetensors")]) < len([*Path(of.model).glob("*.safetensors")])
    found, _ = tokens_of(of.cache, on_vllm(str(folder)))
    check(of.expected, found)
