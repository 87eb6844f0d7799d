"""A split checkpoint is its original in another form: same features, same captions, same keys."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import SMALL, Sizes, copy_golden, write_checkpoint
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from cogcache.catalog.catalog import Catalog
from cogcache.cli import main
from cogcache.errors import (
    CheckpointError,
    ConfigError,
    MissingShardError,
    QuantizationError,
    TruncatedShardError,
)
from cogcache.models.checkpoints.checkpoint import Checkpoint, SplitCheckpoint
from cogcache.models.checkpoints.split_manifest import MANIFEST
from cogcache.models.checkpoints.tensor_files import sha256_of
from cogcache.models.halves.identity import identify
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.halves.offload import Offload
from cogcache.models.halves.waiting import Parked
from cogcache.models.quantization.layers import Quantization
from cogcache.models.registry import family_of
from cogcache.models.split import split
from cogcache.planning.plan import Job, make_plan
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import Settings, load_settings
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract

PROMPTS = {"a": "What color is the shape?", "b": "How fast does it move?"}
SHORT = {"max_new_tokens": 16, "retry": False, "prompts": PROMPTS}
KINDS = ("nf4", "fp4", "int8", "int4", "none")
SUITED = Sizes(width=128, inner=256)
FILES = {"vision-00001.safetensors", "both-00001.safetensors", "language-00001.safetensors"}


NF4 = Settings(language={"quantization": "nf4"})
"""By name: `auto` stands for another kind where there is no AVX-512."""


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Path:
    return copy_golden(tmp_path_factory.mktemp("golden") / "model")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_clip(draw_scene(np.random.default_rng(90 + number)), folder / f"{number}.mp4")
    return folder


@pytest.fixture(scope="module", params=["tiny", "golden"])
def pair(request, golden, tmp_path_factory) -> tuple[str, str]:
    """A checkpoint and its split."""
    model = "tiny" if request.param == "tiny" else str(golden)
    out = tmp_path_factory.mktemp("split") / "out"
    split(model, out, NF4)
    return model, str(out)


@pytest.fixture(scope="module")
def made(pair, videos, tmp_path_factory) -> Path:
    """A cache of features and captions made with the original."""
    cache = tmp_path_factory.mktemp("made") / "cache"
    extract([str(videos)], cache, settings_of(pair[0]))
    shutil.copytree(cache, cache.parent / "features alone")
    assert caption(cache, settings_of(pair[0], **SHORT)).counts.done == 6
    return cache


@pytest.fixture
def uncaptioned(made, tmp_path) -> Path:
    """The same features, in a cache without captions."""
    return shutil.copytree(made.parent / "features alone", tmp_path / "cache")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A small checkpoint in bfloat16 whose layers all suit 4 bits."""
    return write_checkpoint(tmp_path_factory.mktemp("plain") / "model", SUITED)


@pytest.fixture
def parts(plain, tmp_path) -> Path:
    split(str(plain), tmp_path / "out", NF4)
    return tmp_path / "out"


def settings_of(model: str, **given) -> Settings:
    asked = {"model": model, "decode_workers": 1, "quantization": "nf4", **given}
    return load_settings(None, asked)


def texts_of(cache: Path) -> dict[tuple[str, str], str]:
    with Catalog(cache / "catalog.sqlite") as catalog:
        return {
            (row["caption_key"], row["prompt"]): row["caption"] for row in catalog.captions.rows()
        }


def features_of(cache: Path) -> dict[str, bytes]:
    """Return the bytes of each tensor, by feature key and name."""
    import h5py

    found = {}
    for path in (cache / "features").rglob("*.h5"):
        with h5py.File(path) as file:
            for name, data in file["tensors"].items():
                found[f"{path.stem} {name}"] = data.attrs["sha256"]
    return found


# The same features, captions and keys


def test_features_from_a_split_are_those_of_the_original_byte_for_byte(
    pair, made, videos, tmp_path
):
    extract([str(videos)], tmp_path / "cache", settings_of(pair[1]))
    assert len(features_of(made)) == 3
    assert features_of(tmp_path / "cache") == features_of(made)


def test_captions_from_a_split_are_those_of_the_original_token_for_token(pair, made, uncaptioned):
    assert caption(uncaptioned, settings_of(pair[1], **SHORT)).counts.done == 6
    assert texts_of(uncaptioned) == texts_of(made)


def test_what_the_original_cached_is_not_made_again_by_its_split(pair, made, videos, tmp_path):
    cache = shutil.copytree(made, tmp_path / "cache")
    encoded = extract([str(videos)], cache, settings_of(pair[1]))
    captioned = caption(cache, settings_of(pair[1], **SHORT))
    assert (encoded.counts.cached, encoded.counts.done) == (3, 0)
    assert (captioned.counts.cached, captioned.counts.done) == (6, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_half_of_each_kind_is_the_one_that_loading_makes(plain, tmp_path, kind):
    settings = settings_of("tiny", quantization=kind)
    split(str(plain), tmp_path / "out", settings)
    found, wanted = (
        load_half(str(folder), "language", quantization=Quantization(kind=kind))
        for folder in (tmp_path / "out", plain)
    )
    state, original = found.model.state_dict(), wanted.model.state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in original.items())
    assert found.quantization is not None
    assert found.quantization.kind == kind
    assert found.quantization.source_bytes == wanted.quantization.source_bytes


def test_a_split_serves_every_cache_point(golden, videos, tmp_path):
    split(str(golden), tmp_path / "out", NF4)
    for model, cache in ((str(golden), "a"), (str(tmp_path / "out"), "b")):
        settings = settings_of(model, cache_point="pooled", **SHORT)
        extract([str(videos)], tmp_path / cache, settings)
        caption(tmp_path / cache, settings)
    assert features_of(tmp_path / "b") == features_of(tmp_path / "a")
    assert texts_of(tmp_path / "b") == texts_of(tmp_path / "a")


def test_the_plan_of_a_split_is_that_of_the_original(pair):
    found, wanted = (
        make_plan(settings_of(m, memory="8GiB"), Job(prompts=2, clips=100)) for m in reversed(pair)
    )
    assert found.memories == wanted.memories


def test_a_split_in_int4_is_planned_for_the_processor_it_runs_on(tmp_path):
    split("tiny", tmp_path / "out", Settings(language={"quantization": "int4", "group_size": 64}))
    asked = load_settings(None, {"model": str(tmp_path / "out"), "memory": "8GiB"})
    wanted = {"memory": "8GiB", "model": "tiny", "quantization": "int4", "device": "cpu"}
    job = Job(prompts=2, clips=100)
    assert make_plan(asked, job).memories == make_plan(load_settings(None, wanted), job).memories


def test_what_a_split_does_not_hold_is_not_planned(pair):
    with pytest.raises(QuantizationError, match="holds its language half as kind nf4"):
        make_plan(settings_of(pair[1], quantization="int8"), Job(prompts=2, clips=100))


def test_each_half_is_read_without_the_files_of_the_other(parts):
    (parts / "language-00001.safetensors").unlink()
    (parts / "originals-00001.safetensors").unlink()
    loaded = load_half(str(parts), "vision")
    assert set(loaded.bytes_by_shard) == {"vision-00001.safetensors", "both-00001.safetensors"}
    with pytest.raises(MissingShardError, match="language-00001"):
        load_half(str(parts), "language", quantization=Quantization())


def test_layers_of_a_stored_half_wait_elsewhere_and_change_no_bit(parts, plain):
    halves = [
        load_half(folder, "language", quantization=Quantization(head="nf4"), offload=offload)
        for folder, offload in ((str(parts), Offload(1, embedding=True)), (str(plain), None))
    ]
    hooks = [getattr(module, "_hf_hook", None) for module in halves[0].model.modules()]
    assert any(isinstance(hook, Parked) for hook in hooks)
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        found, wanted = (
            half.model(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits
            for half in halves
        )
    assert torch.equal(found, wanted)


def test_the_language_half_is_read_in_4_bits(parts, plain):
    found, wanted = (
        load_half(str(folder), "language", quantization=Quantization()) for folder in (parts, plain)
    )
    assert set(found.bytes_by_shard) == {"language-00001.safetensors"}
    assert sum(found.bytes_by_shard.values()) < 0.6 * sum(wanted.bytes_by_shard.values())


# What lies in the folder


def test_small_files_and_licences_go_along_and_the_original_is_named(tmp_path):
    model = write_checkpoint(tmp_path / "model", SMALL)
    (model / "LICENSE").write_text("of the weights")
    (model / "NOTICE.txt").write_text("by whom")
    split(str(model), tmp_path / "out", Settings(model="tiny", language={"quantization": "none"}))
    for name in ("config.json", "tokenizer.json", "LICENSE", "NOTICE.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["model"] == str(model)
    shards = {path.name: sha256_of(path) for path in model.glob("*.safetensors")}
    assert manifest["shards"] == shards


def test_no_other_program_can_take_it_for_a_whole_checkpoint(parts):
    names = {path.name for path in parts.iterdir()}
    assert names >= {*FILES, MANIFEST, "config.json"}
    assert not {"model.safetensors", "model.safetensors.index.json"} & names


def test_large_halves_are_written_in_several_files(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("cogcache.models.checkpoints.tensor_files.FILE_BYTES", 100_000)
    report = split(str(plain), tmp_path / "out", NF4)
    assert sum(name.startswith("language-") for name in report.bytes_by_file) > 2
    found = load_half(str(tmp_path / "out"), "language", quantization=Quantization()).model
    wanted = load_half(str(plain), "language", quantization=Quantization()).model.state_dict()
    assert all(torch.equal(wanted[name], tensor) for name, tensor in found.state_dict().items())


# What is asked for and is not there


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"quantization": "fp4"}, "holds its language half as kind nf4.*asked for was kind fp4"),
        ({"quantization": "int8"}, "asked for was kind int8"),
        ({"quantization": "none"}, "asked for was not quantised"),
        ({"double_quant": False}, "double_quant true.*asked for was .*double_quant false"),
        ({"compute_dtype": "float32"}, "asked for was .*compute_dtype float32"),
    ],
)
def test_another_precision_than_the_stored_one_is_refused(pair, uncaptioned, asked, message):
    with pytest.raises(QuantizationError, match=message) as refusal:
        caption(uncaptioned, settings_of(pair[1], **SHORT, **asked))
    assert pair[0] in refusal.value.hint
    assert texts_of(uncaptioned) == {}


def test_a_half_that_was_narrowed_is_refused_in_the_wider_type(tmp_path):
    model = write_checkpoint(tmp_path / "model", SUITED, dtype=torch.float32)
    split(str(model), tmp_path / "out", settings_of("tiny", quantization="none"))
    out = str(tmp_path / "out")
    found, wanted = (load_half(m, "vision").model.state_dict() for m in (out, str(model)))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    with pytest.raises(QuantizationError, match="in BF16, of F32; asked for was float32"):
        load_half(out, "vision", dtype=torch.float32)
    with pytest.raises(QuantizationError, match="asked for was kind nf4"):
        load_half(out, "language", quantization=Quantization())


def test_an_unquantised_half_that_was_not_narrowed_can_be_quantised(plain, tmp_path):
    split(str(plain), tmp_path / "out", settings_of("tiny", quantization="none"))
    found, wanted = (
        load_half(str(folder), "language", quantization=Quantization()).model.state_dict()
        for folder in (tmp_path / "out", plain)
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


# Damage


def identity(folder: Path, half: str, tmp_path: Path) -> object:
    with Catalog(tmp_path / "identity.sqlite") as catalog:
        return identify(family_of(Checkpoint.open(str(folder))), half, catalog.files)


@pytest.mark.parametrize("half", ["vision", "language"])
def test_a_changed_file_is_refused(parts, tmp_path, half):
    path = parts / f"{half}-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path.name} does not hold the bytes"):
        identity(parts, half, tmp_path)


def test_a_file_that_is_cut_short_is_refused(parts):
    path = parts / "language-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TruncatedShardError, match="bytes where its header says"):
        load_half(str(parts), "language", quantization=Quantization())


@pytest.mark.parametrize("fault", ["roll", "zero"])
def test_wrong_weights_are_refused_at_loading_as_they_are_when_quantising(parts, fault):
    path = parts / "language-00001.safetensors"
    state = load_file(path)
    name = "model.language_model.layers.0.self_attn.o_proj.weight"
    state[name] = state[name].roll(512) if fault == "roll" else torch.zeros_like(state[name])
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(QuantizationError, match=r"relative error is .* in nf4"):
        load_half(str(parts), "language", quantization=Quantization())


def test_a_split_without_its_manifest_is_no_checkpoint(parts):
    (parts / MANIFEST).unlink()
    with pytest.raises(MissingShardError, match=r"model\.safetensors is missing"):
        WholeModel.of(Checkpoint.open(str(parts)))


def test_an_unreadable_manifest_is_refused(parts):
    (parts / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match=r"cogcache-split\.json cannot be read"):
        WholeModel.of(Checkpoint.open(str(parts)))


# Writing


def test_a_folder_that_is_there_is_not_written_to(plain, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ConfigError, match="is there already"):
        split(str(plain), tmp_path / "out", NF4)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_split_that_is_there_and_whole_is_not_made_again(plain, parts):
    before = {path: path.stat().st_mtime_ns for path in parts.iterdir()}
    report = split(str(plain), parts, NF4)
    assert "it was there already, and is whole: nothing was written" in report.lines()[1]
    assert {path: path.stat().st_mtime_ns for path in parts.iterdir()} == before


def test_a_split_that_is_there_is_refused_where_it_is_another_or_damaged(plain, parts, tmp_path):
    with pytest.raises(ConfigError, match="is a split of another checkpoint or precision"):
        split(str(plain), parts, Settings(language={"quantization": "int8"}))
    with pytest.raises(ConfigError, match="is a split of another checkpoint or precision"):
        split(str(write_checkpoint(tmp_path / "other", SUITED, seed=1)), parts, NF4)
    path = parts / "vision-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match="does not hold the bytes that were split off"):
        split(str(plain), parts, NF4)


def test_a_split_is_not_split_again(parts, tmp_path):
    assert isinstance(Checkpoint.open(str(parts)), SplitCheckpoint)
    with pytest.raises(CheckpointError, match="is split already"):
        split(str(parts), tmp_path / "again", NF4)


def test_a_disk_without_room_is_seen_before_anything_is_written(plain, tmp_path, monkeypatch):
    full = shutil._ntuple_diskusage(10**9, 10**9 - 10_000, 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(ConfigError, match=r"are needed in .*, 9\.77 KiB free"):
        split(str(plain), tmp_path / "out", NF4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGINT, signal.SIGKILL)),
    ],
)
def test_an_interrupted_split_leaves_nothing_that_looks_done(golden, tmp_path, number):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cogcache", "split", str(golden), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".out.*/vision-*")):
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.005)
    os.kill(process.pid, number)
    status = process.wait()
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    assert not out.exists()
    left = list(tmp_path.iterdir())
    assert all(path.name.endswith(".partial") for path in left)
    assert not any((path / MANIFEST).exists() for path in left)
    assert bool(left) == (number == signal.SIGKILL)
    split(str(golden), out, NF4)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_command_says_what_it_wrote(plain, tmp_path):
    done = CliRunner().invoke(
        main,
        ["split", str(plain), str(tmp_path / "out"), "--quantization", "nf4", "--no-double-quant"],
    )
    assert done.exit_code == 0, done.output
    said = done.stdout
    assert "language: " in said
    assert "nf4: 14 of 15 linear layers" in said
    settings = json.loads((tmp_path / "out" / MANIFEST).read_text())["quantized"]["settings"]
    assert settings == {"kind": "nf4", "double_quant": False, "compute_dtype": "bfloat16"}


def test_the_model_to_split_is_named_by_the_argument_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("COGCACHE_MODEL", raising=False)
    done = CliRunner().invoke(main, ["split", str(tmp_path / "none"), str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "no model was named" not in done.output
    assert str(tmp_path / "none") in done.output
