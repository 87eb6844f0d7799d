"""Captions through vLLM's worker: its protocol over real files, with made-up tokens.

`make test-vllm` compares real tokens with those of transformers; here is what happens around them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
import torch
from scenes import catalog_of, settings
from standin_worker import LENGTH, tokens_for, write_python

from cogcache.errors import CogcacheError, ConfigError, QuantizationError
from cogcache.generation.vllm.supported import check_backend
from cogcache.generation.vllm.view import View
from cogcache.keys import FeatureKey
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.family import ClipTensors
from cogcache.models.halves.identity import identify
from cogcache.models.halves.load import WholeModel
from cogcache.models.registry import family_of
from cogcache.settings.settings import Settings
from cogcache.stages.caption import caption
from cogcache.stages.captioning.precision import check_precision
from cogcache.stages.clips.worklist import Clip, Wanted, clip_row
from cogcache.store.store import FeatureStore

NUM_CLIPS = 4
PROMPTS = {"what": "What is it?", "how": "Tell me how it moves."}
SETTINGS = settings()


def asked(python: Path | None, **changes: object) -> Settings:
    given = {"backend": "vllm", "retry": False, "prompts": PROMPTS, "clips_per_batch": 2}
    return settings(**{**given, "backend_python": str(python) if python else None, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[str]]:
    """A cache of `tiny` whose features nobody has encoded, and their keys."""
    root = tmp_path_factory.mktemp("vllm") / "cache"
    store, family = FeatureStore.create_or_open(root), family_of(Checkpoint.open("tiny"))
    random = torch.Generator().manual_seed(0)
    keys = []
    with catalog_of(root) as catalog:
        wanted = Wanted(SETTINGS, family, identify(family, "vision", catalog.files))
        run = catalog.runs.start("extract", "tiny", {})
        for number in range(NUM_CLIPS):
            video, digest = Path(f"/videos/{number}.mp4"), f"{number}" * 64
            catalog.files.add_videos([_video(video, digest)])
            clip = Clip(video, wanted.key(digest, (0.0, None)))
            rows = torch.randn((4 + number, 6, 128), generator=random).bfloat16()
            store.write(clip.key.digest, {"features": rows}, _attributes(clip.key, len(rows)))
            catalog.clips.add([clip_row(clip, "tiny", run)])
            keys.append(clip.key.digest)
    return root, keys


def _video(video: Path, digest: str) -> dict[str, object]:
    return {
        "digest": digest, "path": str(video), "duration_s": 9.0, "fps": 1.0, "width": 8,
        "height": 8, "total_num_frames": 9, "codec": "h264", "size_bytes": 1,
    }  # fmt: skip


def _attributes(key: FeatureKey, count: int) -> dict[str, object]:
    facts = {"timestamps_s": [float(i) for i in range(count)], "frame_indices": [*range(count)]}
    facts |= {"fps": 1.0, "duration_s": 9.0, "total_num_frames": 9, "decoder": "pyav"}
    return {**key.fields(), **facts, "suspect": None, "video": "x", "model": "tiny", "texts": {}}


@pytest.fixture
def cache(made, tmp_path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "cache"))


def said(cache: Path) -> dict[tuple[str, str], str]:
    with catalog_of(cache) as catalog:
        rows = catalog.captions.rows()
    return {(row["feature_key"], row["prompt_name"]): row["caption"] for row in rows}


def expected(cache: Path, keys: list[str]) -> dict[tuple[str, str], str]:
    """Return what the stand-in says of ids, positions and features as they lie in the cache."""
    store, family = FeatureStore.open(cache), family_of(Checkpoint.open("tiny"))
    found = {}
    for key in keys:
        tensors = store.read(key).tensors
        for name, prompt in PROMPTS.items():
            row = family.row(ClipTensors(tensors), prompt, "chat")
            positions = family.positions(row).expand(3, -1).tolist()
            rows = {"features": tensors["features"].view(torch.int16).numpy().tobytes()}
            tokens = tokens_for(row.sequences["input_ids"].tolist(), positions, rows)
            found[key, name] = family.text_of(tokens)
    return found


def log(python: Path) -> Iterator[dict[str, int]]:
    yield from map(json.loads, python.with_name("log").read_text().splitlines())


def test_every_caption_is_of_its_own_features_ids_and_positions(cache, made, tmp_path):
    python = write_python(tmp_path / "env")
    report = caption(cache, asked(python))
    assert report.counts.done == NUM_CLIPS * len(PROMPTS)
    assert said(cache) == expected(cache, made[1])
    assert any("vllm 0.32.0" in note for note in report.notes)
    assert report.peak.host_bytes > 0
    with catalog_of(cache) as catalog:
        keys = [row["settings"]["quantization"] for row in catalog.captions.rows()]
    assert {(key["kind"], key["backend"]) for key in keys} == {("none", "vllm")}
    assert max(entry["in_hand"] for entry in log(python)) <= 2 * 2 + len(PROMPTS) - 1
    assert caption(cache, asked(python)).counts.cached == NUM_CLIPS * len(PROMPTS)


@pytest.mark.parametrize("devices", [{}, {"devices": "cpu"}], ids=["here", "crew"])
def test_the_memory_that_is_reported_is_that_of_vllm_s_worker(cache, tmp_path, devices):
    python = write_python(tmp_path / "env")
    report = caption(cache, asked(python, **devices))
    held = max(entry.get("held_bytes", 0) for entry in log(python))
    assert held > 0
    assert report.peak.host_bytes == pytest.approx(held, rel=0.1)
    assert report.planned.cache_bytes > 0
    assert 0 < report.base_bytes <= held


def test_the_worker_is_asked_what_it_expects_at_given_places(cache, made, tmp_path):
    python = write_python(tmp_path / "env")
    [first, *others] = check_precision(cache, asked(python), clips=2, positions=4)
    assert len(others) == 3
    assert first.expectations.positions == 4
    assert first.caption in expected(cache, made[1]).values()
    looks = [entry for entry in log(python) if "look" in entry]
    assert [entry["look"] for entry in looks] == [4] * 4


def test_int8_and_none_are_told_apart_by_the_key_and_what_is_held_is_checked(cache, tmp_path):
    held = {"layers": {"Int8Linear, int8": 6}, "weight_error": 0.0061}
    python = write_python(tmp_path / "env", held=held)
    report = caption(cache, asked(python, quantization="int8"))
    assert "6 layers by Int8Linear, int8; weight error at most 0.0061" in report.quantization
    with catalog_of(cache) as catalog:
        keys = [row["settings"]["quantization"] for row in catalog.captions.rows()]
    assert {(key["kind"], key["backend"]) for key in keys} == {("int8", "vllm")}
    held = {"layers": {"Int8Linear, int8": 5, "UnquantizedLinearMethod, bfloat16": 1}}
    python = write_python(tmp_path / "other", held=held)
    with pytest.raises(QuantizationError, match="otherwise than in int8"):
        caption(cache, asked(python, quantization="int8", prompts={"new": "Once more."}))


def test_a_worker_that_is_killed_costs_nothing_but_time(cache, made, tmp_path):
    python = write_python(tmp_path / "env", deaths=2, die_after=LENGTH * 3)
    report = caption(cache, asked(python))
    assert said(cache) == expected(cache, made[1])
    assert any("ended 2 times" in note for note in report.notes)
    assert len({entry["pid"] for entry in log(python)}) == 3


def test_a_worker_that_always_dies_ends_the_run_and_what_was_made_is_kept(cache, tmp_path):
    python = write_python(tmp_path / "env", deaths=99, die_after=0)
    with pytest.raises(CogcacheError, match=r"ended 3 times in a row: it ended by SIGKILL"):
        caption(cache, asked(python))


def test_a_feature_file_that_was_tampered_with_fails_its_clip_alone(cache, made, tmp_path):
    _flip_a_bit(FeatureStore.open(cache).path_of(made[1][0]))
    report = caption(cache, asked(write_python(tmp_path / "env")))
    assert (report.counts.done, report.counts.failed) == (6, 2)
    assert said(cache) == expected(cache, made[1][1:])
    with catalog_of(cache) as catalog:
        [failure] = catalog.failures.rows(stage="caption")
    assert failure["reason"] == "features_corrupt"
    assert len([*(cache / "quarantine").glob("*.h5")]) == 1


def _flip_a_bit(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        kind = file["tensors/features"].id.get_type()
        rows = torch.zeros(file["tensors/features"].shape, dtype=torch.int16).numpy()
        dataset = file["tensors/features"].id
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, rows, mtype=kind)
        rows[1, 2, 3] ^= 1
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, rows, mtype=kind)


def test_a_stop_text_ends_a_caption_where_it_stands_and_frees_the_worker(cache, made, tmp_path):
    whole = expected(cache, made[1])
    (key, name), text = max(whole.items(), key=lambda pair: len(pair[1]))
    stop = text[len(text) // 3 :].strip()[:2]
    python = write_python(tmp_path / "env")
    caption(cache, asked(python, stop=[stop]))
    found = said(cache)
    assert found[key, name] == text.partition(stop)[0].strip()
    assert found.keys() == whole.keys()
    assert any("aborted" in entry for entry in log(python))


def test_prompts_made_of_captions_are_asked_of_the_same_worker(cache, made, tmp_path):
    prompts = {**PROMPTS, "again": "Once more: {caption.what}"}
    python = write_python(tmp_path / "env")
    report = caption(cache, asked(python, prompts=prompts, text_only=["again"]))
    assert report.counts.done == NUM_CLIPS * 3
    assert len({entry["pid"] for entry in log(python)}) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"quantization": "nf4"}, "nf4"),
        ({"head_quantization": "int8"}, "--head-quantization"),
        ({"adapter": "somewhere"}, "--adapter"),
        ({"keep_prefix": "somewhere"}, "--keep-prefix"),
        ({"num_beams": 2}, "--num-beams"),
        ({"json_schema": "{}"}, "--json-schema"),
        ({"cache_point": "pooled"}, "--cache-point"),
        ({"device": "mps"}, "--device"),
        ({"tensor_parallel": 2}, "--unproven"),
        ({"engine": "ray"}, "--unproven"),
        ({"quantization": "fp8"}, "--unproven"),
    ],
)
def test_what_the_worker_cannot_do_is_refused_by_name(changes, named):
    wanted = asked(Path("python"), **changes)
    family = family_of(Checkpoint.open("tiny")).at(wanted.vision.cache_point)
    with pytest.raises(ConfigError) as caught:
        check_backend(wanted, family)
    assert named in str(caught.value)


def test_fp8_is_refused_without_vllm():
    with pytest.raises(ConfigError, match="fp8 needs backend vllm"):
        settings(quantization="fp8")


def test_options_of_vllm_without_it_are_refused():
    with pytest.raises(ConfigError, match="tensor_parallel has no effect unless backend is vllm"):
        settings(tensor_parallel=2)


@pytest.mark.parametrize(
    ("orders", "problem"),
    [
        ({"vllm": "0.31.2"}, "has vLLM 0.31.2; cogcache-vllm is for 0.32 alone"),
        ({"vllm": ""}, "no vLLM"),
    ],
)
def test_another_version_than_the_pinned_one_is_refused(cache, tmp_path, orders, problem):
    with pytest.raises(ConfigError, match=problem):
        caption(cache, asked(write_python(tmp_path / "env", **orders)))


def test_a_wrong_environment_is_told_from_a_missing_one(cache, tmp_path):
    with pytest.raises(ConfigError, match="cannot be started: No such file"):
        caption(cache, asked(tmp_path / "nowhere"))
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho No module named cogcache_vllm >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(ConfigError, match="No module named cogcache_vllm") as caught:
        caption(cache, asked(python))
    assert "install cogcache-vllm" in caught.value.hint
    with pytest.raises(ConfigError, match="--backend-python PATH"):
        caption(cache, asked(None))


def test_the_view_lists_the_language_half_and_no_vision_tensor():
    family = family_of(Checkpoint.open("tiny"))
    view = View.of(family, SETTINGS.language)
    parts = WholeModel.of(family.checkpoint, **family.partition_settings()).partition
    listed = {name for _, name in view.tensors.values()}
    assert listed == {*parts.language}
    assert not listed & {*parts.vision}
    assert len(view.tensors) == len(listed)
