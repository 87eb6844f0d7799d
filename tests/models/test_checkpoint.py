from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from checkpoints import (
    INDEX,
    SMALL,
    names_in,
    published_tensors,
    read_checkpoint,
    shard_name,
    write_checkpoint,
)
from local_hub import COMMITS, Hub, sha256, with_hub

from cogcache.errors import CheckpointError, MissingShardError, TruncatedShardError
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.checkpoints.headers import read_header

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "model")


# Headers


def test_a_header_names_every_tensor_of_its_shard(folder):
    for shard in folder.glob("*.safetensors"):
        assert read_header(shard).keys() == names_in(shard)


def test_a_header_gives_dtype_shape_and_bytes(folder):
    info = read_header(folder / shard_name(1))[EMBEDDING]
    assert (info.dtype, info.shape) == ("BF16", (SMALL.vocabulary, SMALL.width))
    assert info.num_bytes == 2 * info.num_parameters == 2 * SMALL.vocabulary * SMALL.width


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(MissingShardError, match=r"gone\.safetensors is missing"):
        read_header(tmp_path / "gone.safetensors")


def test_a_truncated_shard_is_told_by_its_size(folder):
    shard = folder / shard_name(1)
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    message = rf"{shard.name} has {size - 1:,} bytes where its header says {size:,}"
    with pytest.raises(TruncatedShardError, match=message):
        read_header(shard)


@pytest.mark.parametrize("kept", [0, 4, 8, 100])
def test_a_shard_cut_within_its_header_has_none(folder, kept):
    shard = folder / shard_name(1)
    os.truncate(shard, kept)
    with pytest.raises(TruncatedShardError, match="no readable safetensors header"):
        read_header(shard)


def headed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 1000,
        b"<!DOCTYPE html><html><body>Not Found</body></html>",
        headed(b"\xff\xfe not text"),
        headed(b"[1, 2, 3]"),
        headed(b'{"a": 1}'),
        headed(b'{"a": {"dtype": "F32"}}'),
        headed(b'{"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 4]}}'),
        headed(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}'),
        headed(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}'),
    ],
    ids=range(9),
)
def test_garbage_in_place_of_a_shard_is_an_error_that_names_it(tmp_path, content):
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(content)
    with pytest.raises(TruncatedShardError, match=r"model\.safetensors"):
        read_header(shard)


# A checkpoint's folder


def test_the_bundled_model_needs_no_folder():
    assert Checkpoint.open("tiny").folder.name == "tiny"


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Checkpoint.open(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", "\0"])
def test_a_config_that_is_no_json_object_is_named(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        _ = Checkpoint.open(str(folder)).config


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_a_weight_map_is_named(folder, content):
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json has no weight_map"):
        _ = Checkpoint.open(str(folder)).weight_map


def test_the_index_is_read_without_any_shard(folder):
    names = read_checkpoint(folder).keys()
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    assert Checkpoint.open(str(folder)).weight_map.keys() == names


def test_a_single_file_needs_no_index(tmp_path):
    folder = write_checkpoint(tmp_path, sharded=False)
    checkpoint = Checkpoint.open(str(folder))
    assert set(checkpoint.weight_map) == names_in(folder / "model.safetensors")
    assert set(checkpoint.weight_map.values()) == {"model.safetensors"}


@pytest.mark.parametrize("sharded", [True, False])
def test_the_total_is_the_bytes_of_all_tensors(tmp_path, sharded):
    folder = write_checkpoint(tmp_path, sharded=sharded)
    tensors = read_checkpoint(folder).values()
    wanted = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert Checkpoint.open(str(folder)).total_bytes == wanted


def test_an_index_may_lack_the_total(folder):
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "metadata": None}))
    assert Checkpoint.open(str(folder)).total_bytes == 0


def test_a_tensor_that_its_shard_lacks_is_named_with_the_shard(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.extra"] = shard_name(2)
    (folder / INDEX).write_text(json.dumps(index))
    message = rf"{shard_name(2)} lacks model\.extra"
    with pytest.raises(TruncatedShardError, match=message):
        Checkpoint.open(str(folder)).tensors(["model.norm.weight", "model.extra"])


def test_tensors_are_described_from_their_own_shards_alone(folder):
    for number in (2, 3, 4):
        (folder / shard_name(number)).unlink()
    assert list(Checkpoint.open(str(folder)).tensors([EMBEDDING])) == [EMBEDDING]


def test_a_missing_shard_of_a_folder_is_named(folder):
    (folder / shard_name(4)).unlink()
    with pytest.raises(MissingShardError, match=f"{shard_name(4)} is missing"):
        Checkpoint.open(str(folder)).tensors(["lm_head.weight"])


def test_small_files_are_all_but_weights(folder):
    (folder / "README.md").write_text("words")
    names = [path.name for path in Checkpoint.open(str(folder)).small_files()]
    assert names == ["config.json", "tokenizer.json"]


# Views


def test_a_view_links_only_the_shards_that_are_needed(folder, tmp_path):
    (view := tmp_path / "view").mkdir()
    Checkpoint.open(str(folder)).view(["lm_head.weight", "model.norm.weight"], view)
    shards = sorted(view.glob("*.safetensors"))
    assert [shard.name for shard in shards] == [shard_name(2), shard_name(4)]
    assert all(shard.is_symlink() for shard in shards)


def test_the_index_of_a_view_names_its_tensors_and_no_others(folder, tmp_path):
    (view := tmp_path / "view").mkdir()
    Checkpoint.open(str(folder)).view(["lm_head.weight", "model.norm.weight"], view)
    weight_map = json.loads((view / INDEX).read_text())["weight_map"]
    assert weight_map == {"lm_head.weight": shard_name(4), "model.norm.weight": shard_name(2)}


def test_a_view_is_a_checkpoint_itself(folder, tmp_path):
    (view := tmp_path / "view").mkdir()
    Checkpoint.open(str(folder)).view([EMBEDDING], view)
    assert list(Checkpoint.open(str(view)).tensors([EMBEDDING])) == [EMBEDDING]


def test_a_view_of_a_single_file_links_it_without_an_index(tmp_path):
    folder = write_checkpoint(tmp_path / "model", sharded=False)
    (view := tmp_path / "view").mkdir()
    Checkpoint.open(str(folder)).view([EMBEDDING], view)
    names = sorted(path.name for path in view.iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]


# Digests


def digest_of(folder: Path, names: list[str]) -> str:
    return Checkpoint.open(str(folder)).digest(names, sha256)


def test_a_digest_depends_on_the_shards_of_its_tensors_alone(folder, tmp_path):
    (other := tmp_path / "other").mkdir()
    shutil.copytree(folder, other, dirs_exist_ok=True)
    (other / shard_name(4)).write_bytes(b"garbage")
    assert digest_of(folder, [EMBEDDING]) == digest_of(other, [EMBEDDING])


def test_a_digest_changes_with_a_weight(tmp_path):
    folders = [write_checkpoint(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    assert digest_of(folders[0], [EMBEDDING]) != digest_of(folders[1], [EMBEDDING])


def test_a_digest_changes_with_the_tensors_that_it_is_of(tmp_path):
    folder = write_checkpoint(tmp_path, sharded=False)
    assert digest_of(folder, [EMBEDDING]) != digest_of(folder, ["lm_head.weight"])


def test_a_digest_changes_with_what_the_config_computes(folder):
    before = digest_of(folder, [EMBEDDING])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    assert digest_of(folder, [EMBEDDING]) != before


def test_a_digest_does_not_change_with_what_the_config_merely_says(folder):
    before = digest_of(folder, [EMBEDDING])
    config = json.loads((folder / "config.json").read_text())
    changed = {"transformers_version": "5.0.0", "_name_or_path": "elsewhere"}
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    assert digest_of(folder, [EMBEDDING]) == before


# A hub


@pytest.fixture
def hub(folder) -> Iterator[Hub]:
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    (folder / "modeling_cogvlm.py").write_text("raise SystemExit('remote code was run')")
    with Hub(folder) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


SMALL_FILES = ["config.json", INDEX, "tokenizer.json"]


def test_opening_a_hub_id_fetches_the_small_files_alone(hub, tmp_path):
    with_hub(hub.address, tmp_path / "home", "Checkpoint.open('some/model')")
    assert sorted(hub.downloads) == SMALL_FILES


@pytest.mark.parametrize(("half", "shards"), [("vision", [2, 3]), ("language", [1, 2, 4])])
def test_loading_a_half_of_a_hub_id_fetches_its_shards_alone(hub, tmp_path, half, shards):
    code = f"from cogcache.models.halves.load import load_half\nload_half('some/model', '{half}')"
    with_hub(hub.address, tmp_path / "home", code)
    wanted = [shard_name(number) for number in shards]
    assert sorted(hub.downloads) == sorted(SMALL_FILES + wanted)


def test_what_was_fetched_is_not_fetched_again(hub, tmp_path):
    code = "Checkpoint.open('some/model').tensors(['lm_head.weight'])"
    with_hub(hub.address, tmp_path / "home", code)
    hub.downloads.clear()
    with_hub(hub.address, tmp_path / "home", code)
    assert not hub.downloads


def test_what_was_fetched_is_found_when_the_hub_is_gone(hub, tmp_path):
    code = "Checkpoint.open('some/model').tensors(['lm_head.weight'])"
    with_hub(hub.address, tmp_path / "home", code)
    with_hub("http://127.0.0.1:9", tmp_path / "home", code)


def test_shards_are_of_the_same_commit_as_the_small_files(hub, tmp_path):
    hub.moves_on = True
    code = "Checkpoint.open('some/model').tensors(['lm_head.weight'])"
    with_hub(hub.address, tmp_path / "home", code)
    assert shard_name(4) in hub.downloads
    assert set(hub.commits) == {COMMITS[0]}


def test_the_digest_of_a_fetched_shard_is_the_one_the_hub_gave(hub, tmp_path):
    code = f"""
checkpoint = Checkpoint.open("some/model")
checkpoint.fetch(["{shard_name(4)}"])
print(checkpoint.shard_digest("{shard_name(4)}", lambda path: "read"))
"""
    assert with_hub(hub.address, tmp_path / "home", code) == sha256(hub.folder / shard_name(4))


@pytest.mark.parametrize(
    ("address", "model"), [("", "no/such-model"), ("http://127.0.0.1:9", "some/model")]
)
def test_a_model_that_cannot_be_fetched_is_named(hub, tmp_path, address, model):
    code = f"""
from cogcache.errors import CheckpointError
try:
    Checkpoint.open("{model}")
except CheckpointError as error:
    print(error.problem)
"""
    said = with_hub(address or hub.address, tmp_path / "home", code)
    assert said.startswith(f"{model} cannot be fetched: ")


def test_a_name_that_is_neither_folder_nor_hub_id_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        Checkpoint.open(str(tmp_path / "no" / "such" / "folder"))


def test_the_published_index_gives_the_shards_of_its_first_tensors(tmp_path):
    weight_map = {name: shard for name, (shard, _) in published_tensors().items()}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = Checkpoint.open(str(tmp_path))
    assert checkpoint.shards_of(["lm_head.weight", EMBEDDING]) == [
        shard_name(1, 6),
        shard_name(6, 6),
    ]
