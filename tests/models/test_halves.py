from __future__ import annotations

import gc
import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    INDEX,
    MINI,
    SMALL,
    Sizes,
    published_shard,
    published_tensors,
    random_tensors,
    read_checkpoint,
    shard_name,
    write_checkpoint,
    write_shards,
)
from torch import Tensor

from cogcache.errors import (
    CheckpointError,
    MissingShardError,
    TensorMismatchError,
    TruncatedShardError,
    UnknownFamilyError,
)
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import WholeModel, check_half, load_half, load_whole
from tests.models.test_cogvlm2 import PUBLISHED

HALVES = ("vision", "language")
SHARDS = {"vision": [2, 3], "language": [1, 2, 4]}
QKV = "model.layers.0.self_attn.language_expert_query_key_value.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "model")


def other_shards(half: str) -> list[str]:
    return [shard_name(number) for number in range(1, 5) if number not in SHARDS[half]]


def rewrite(folder: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    """Write a checkpoint's shards anew after `change` of its tensors and its weight map."""
    tensors = {name: tensor.clone() for name, tensor in read_checkpoint(folder).items()}
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    change(tensors, weight_map)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    write_shards(folder, tensors, {k: v for k, v in weight_map.items() if k in tensors})


def configure(folder: Path, **keys: object) -> None:
    """Change keys of config.json; None takes one out."""
    config = {**json.loads((folder / "config.json").read_text()), **keys}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


# Partition


@pytest.mark.parametrize("sharded", [True, False])
def test_the_halves_partition_the_checkpoint(tmp_path, sharded):
    folder = write_checkpoint(tmp_path, sharded=sharded)
    parts = WholeModel.of(Checkpoint.open(str(folder))).partition
    lists = [*parts.vision, *parts.language, *parts.shared, *parts.dropped]
    assert sorted(lists) == sorted(read_checkpoint(folder))
    assert all(name.startswith("model.vision.") for name in parts.vision)
    assert not any(name.startswith("model.vision.") for name in parts.language)
    assert parts.shared == ()
    assert parts.dropped == ("model.layers.1.self_attn.rotary_emb.inv_freq",)


@pytest.fixture
def published(tmp_path) -> WholeModel:
    """The published checkpoint's config and index, without any weight."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    weight_map = {name: shard for name, (shard, _) in published_tensors().items()}
    index = {"metadata": {"total_size": 25_015_065_088}, "weight_map": weight_map}
    (tmp_path / INDEX).write_text(json.dumps(index))
    return WholeModel.of(Checkpoint.open(str(tmp_path)))


def test_the_halves_of_the_published_checkpoint_have_the_published_sizes(published):
    parts, tensors = published.partition, published_tensors()
    language = [name for name in parts.language if not name.endswith("inv_freq")]
    assert (len(parts.vision), len(language), len(parts.language)) == (770, 227, 228)
    assert (len(parts.dropped), len(parts.shared)) == (31, 0)

    def parameters(names):
        return sum(torch.Size(tensors[name][1]).numel() for name in names)

    assert parameters(parts.vision) == 4_477_269_248
    assert parameters(language) == 8_030_261_248


def test_the_halves_of_the_published_checkpoint_are_in_the_published_shards(published):
    def numbers(half):
        shards = published.checkpoint.shards_of(published.partition.names(half))
        return [int(shard.split("-")[1]) for shard in shards]

    assert numbers("vision") == [4, 5]
    assert numbers("language") == [1, 2, 3, 4, 6]
    mixed = {n for n, (shard, _) in published_tensors().items() if shard == shard_name(4, 6)}
    assert len(mixed & set(published.partition.language)) == 4


# What a half holds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("half", HALVES)
def test_a_half_has_the_weights_of_the_whole_bit_for_bit(folder, half, dtype):
    whole = dict(load_whole(str(folder), dtype=dtype).state_dict())
    loaded = dict(load_half(str(folder), half, dtype=dtype).model.state_dict())
    assert loaded
    for name, tensor in loaded.items():
        assert tensor.dtype == whole[name].dtype
        assert torch.equal(tensor, whole[name]), name


def test_the_two_halves_together_are_the_whole(folder):
    halves = [set(load_half(str(folder), half).model.state_dict()) for half in HALVES]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(load_whole(str(folder)).state_dict())


@pytest.mark.parametrize("half", HALVES)
def test_a_half_is_loaded_without_anything_on_meta(folder, half):
    model = load_half(str(folder), half).model
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("half", HALVES)
def test_a_half_is_in_bfloat16_unless_asked_otherwise(folder, half):
    dtypes = {each.dtype for each in load_half(str(folder), half).model.parameters()}
    assert dtypes == {torch.bfloat16}


@pytest.fixture(scope="module", params=HALVES)
def process(request, tmp_path_factory) -> dict[str, Any]:
    """What a process that has loaded a half says of itself."""
    folder = write_checkpoint(tmp_path_factory.mktemp("process") / "model")
    code = f"""
import gc, json, sys, torch
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
from cogcache.models.halves.load import load_half
loaded = load_half({str(folder)!r}, {request.param!r})
parameters = [each for each in gc.get_objects() if isinstance(each, torch.nn.Parameter)]
print(json.dumps({{
    "names": [name for name, _ in loaded.model.named_parameters()],
    "num_parameters": sum(each.numel() for each in parameters if each.device.type != "meta"),
    "opened": sorted(opened),
    "maps": open("/proc/self/maps").read(),
}}))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"half": request.param, **json.loads(done.stdout)}


def test_a_process_that_loads_a_half_has_no_parameter_of_the_other(process):
    is_vision = process["half"] == "vision"
    assert process["names"]
    assert all(name.startswith("model.vision.") == is_vision for name in process["names"])
    shapes = [
        shape
        for name, shape in SMALL.shapes().items()
        if name.startswith("model.vision.") == is_vision and "inv_freq" not in name
    ]
    assert process["num_parameters"] == sum(torch.Size(shape).numel() for shape in shapes)


def test_a_process_that_loads_a_half_opens_and_maps_no_shard_of_the_other(process):
    """What the interpreter opens and what libraries map: no file escapes both."""
    seen = "\n".join([*process["opened"], process["maps"]])
    found = [number for number in range(1, 5) if shard_name(number) in seen]
    assert found == SHARDS[process["half"]]


def test_a_tensor_of_the_other_half_is_an_error(folder):
    whole = WholeModel.of(Checkpoint.open(str(folder)))
    with pytest.raises(TensorMismatchError, match=r"vision half holds lm_head\.weight"):
        check_half(load_whole(str(folder)), "vision", whole.partition.modules)


def test_a_tensor_left_on_meta_is_an_error(folder):
    loaded = load_half(str(folder), "vision")
    vision = loaded.model.model.vision
    vision.boi = torch.nn.Parameter(vision.boi.to("meta"))
    with pytest.raises(TensorMismatchError, match=r"left without model\.vision\.boi"):
        check_half(loaded.model, "vision", loaded.partition.modules)


# Which shards are opened and what is read of them


@pytest.mark.parametrize("half", HALVES)
def test_a_half_needs_only_its_own_shards(folder, half):
    for shard in other_shards(half):
        (folder / shard).unlink()
    assert load_half(str(folder), half).model is not None


@pytest.mark.parametrize("half", HALVES)
def test_a_half_does_not_look_into_other_shards(folder, half):
    for shard in other_shards(half):
        (folder / shard).write_bytes(b"garbage")
    assert load_half(str(folder), half).model is not None


@pytest.mark.parametrize("half", HALVES)
def test_the_bytes_read_are_those_of_the_tensors_of_the_half(folder, half):
    loaded = load_half(str(folder), half)
    assert sorted(loaded.bytes_by_shard) == [shard_name(number) for number in SHARDS[half]]
    described = Checkpoint.open(str(folder)).tensors(loaded.partition.names(half))
    assert sum(loaded.bytes_by_shard.values()) == sum(info.num_bytes for info in described.values())


BIG = Sizes(width=256, inner=1024, vocabulary=4096, layers=4, vision_width=128, vision_inner=512)


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A checkpoint whose one mixed shard holds 15 MB, most of it of the language half."""
    write_checkpoint(tmp_path, BIG)

    def into_one(tensors: dict[str, Tensor], weight_map: dict[str, str]) -> None:
        weight_map.update(dict.fromkeys(tensors, shard_name(1)))

    rewrite(tmp_path, into_one)
    return tmp_path / shard_name(1)


def resident_bytes(path: Path) -> int:
    """Return how much of a file's maps in this process the kernel holds in memory for it."""
    pattern = rf"{re.escape(str(path))}\n(?:\w+: .*\n)*?Rss: +(\d+) kB"
    return 1024 * sum(map(int, re.findall(pattern, Path("/proc/self/smaps").read_text())))


def bytes_by_read() -> int:
    """Return the bytes that this process has got from calls of `read`, maps apart."""
    return int(re.findall(r"rchar: (\d+)", Path("/proc/self/io").read_text())[0])


def forget(path: Path) -> None:
    """Write a file out and let the kernel drop it from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("half", HALVES)
def test_of_a_mixed_shard_only_the_half_is_read_into_memory(mixed, half):
    load_half(str(mixed.parent), half)  # so that modules imported late are not counted
    forget(mixed)
    before = bytes_by_read()
    loaded = load_half(str(mixed.parent), half)
    assert bytes_by_read() - before < 2**20
    for parameter in loaded.model.parameters():
        parameter.sum()
    total, resident = mixed.stat().st_size, resident_bytes(mixed)
    # The kernel maps up to 16 pages around one that is touched, and the parts have ends.
    slack = 4 * 16 * mmap.PAGESIZE
    assert (
        sum(loaded.bytes_by_shard.values())
        <= resident
        <= sum(loaded.bytes_by_shard.values()) + slack
        < total - slack
    )


def test_nothing_of_a_half_stays_when_it_is_let_go(mixed):
    loaded = load_half(str(mixed.parent), "vision")
    view = loaded.folder
    assert (view / INDEX).is_file()
    del loaded
    gc.collect()
    assert not view.exists()
    assert resident_bytes(mixed) == 0


# Faults


def test_a_missing_shard_of_the_half_is_named(folder):
    (folder / shard_name(3)).unlink()
    with pytest.raises(MissingShardError, match=f"{shard_name(3)} is missing"):
        load_half(str(folder), "vision")


def test_a_truncated_shard_of_the_half_is_named(folder):
    os.truncate(folder / shard_name(3), 1000)
    with pytest.raises(TruncatedShardError, match=shard_name(3)):
        load_half(str(folder), "vision")


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("model.vision.boi", "vision"),
        ("model.vision.transformer.layers.1.mlp.fc1.bias", "vision"),
        ("model.norm.weight", "language"),
        ("lm_head.weight", "language"),
        (QKV, "language"),
    ],
)
def test_a_missing_tensor_is_named_as_the_checkpoint_names_it(folder, name, half):
    rewrite(folder, lambda tensors, _: tensors.pop(name))
    with pytest.raises(TensorMismatchError, match=rf"lacks 1 tensors: {re.escape(name)}\n"):
        load_half(str(folder), half)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.vision_mlp.up_proj.weight", "model.vision.extra", "other"]
)
def test_an_unexpected_tensor_is_named(folder, half, name):
    def add(tensors: dict[str, Tensor], weight_map: dict[str, str]) -> None:
        tensors[name] = torch.zeros(3)
        weight_map[name] = shard_name(1)

    rewrite(folder, add)
    with pytest.raises(TensorMismatchError, match=rf"has no place for: {re.escape(name)}"):
        load_half(str(folder), half)


@pytest.mark.parametrize(
    ("name", "shape", "half"),
    [
        ("model.vision.conv.weight", (32, 32, 3, 3), "vision"),
        ("model.norm.weight", (32,), "language"),
        (QKV, (130, 64), "language"),
        (QKV, (128, 32), "language"),
    ],
)
def test_a_misshapen_tensor_is_named_with_both_shapes(folder, name, shape, half):
    wanted = list(SMALL.shapes()[name])
    rewrite(folder, lambda tensors, _: tensors.update({name: torch.zeros(shape)}))
    for shard in other_shards(half):
        (folder / shard).unlink()
    message = re.escape(f"{name} {list(shape)} in place of {wanted}")
    with pytest.raises(TensorMismatchError, match=message):
        load_half(str(folder), half)


@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        (["NoSuchModel"], "architecture NoSuchModel is not known"),
        (["BertModel"], "BertModel takes no features from outside"),
        ("CogVLMVideoForCausalLM", "architecture none"),
        (None, "architecture none"),
        ([], "architecture none"),
    ],
)
def test_an_unknown_architecture_is_named(folder, architectures, message):
    configure(folder, architectures=architectures)
    with pytest.raises(UnknownFamilyError, match=message):
        load_half(str(folder), "vision")


def test_a_config_without_the_vision_part_is_named(folder):
    configure(folder, vision_config=None)
    with pytest.raises(CheckpointError, match=r"config\.json describes no vision part"):
        load_half(str(folder), "language")


@pytest.mark.parametrize("keys", [{"hidden_size": "wide"}, {"vision_config": "none"}])
def test_a_config_that_makes_no_sense_is_named(folder, keys):
    configure(folder, **keys)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        load_half(str(folder), "language")


def test_a_config_of_more_layers_than_there_are_is_an_error(folder):
    configure(folder, num_hidden_layers=3)
    with pytest.raises(TensorMismatchError, match=r"lacks 7 tensors: model\.layers\.2\."):
        load_half(str(folder), "language")


# Kinds of checkpoint


@pytest.mark.parametrize("half", HALVES)
def test_a_single_file_has_halves_too(tmp_path, half):
    folder = write_checkpoint(tmp_path, sharded=False)
    loaded = load_half(str(folder), half)
    assert list(loaded.bytes_by_shard) == ["model.safetensors"]
    assert sum(loaded.bytes_by_shard.values()) < (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("half", HALVES)
def test_a_checkpoint_that_was_saved_again_has_the_same_halves(folder, tmp_path, half):
    load_whole(str(folder)).save_pretrained(tmp_path / "saved")
    wanted, found = (
        load_half(str(path), half).model.state_dict() for path in (folder, tmp_path / "saved")
    )
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_layer_may_lie_across_shards(folder):
    def scatter(tensors: dict[str, Tensor], weight_map: dict[str, str]) -> None:
        for index, name in enumerate(sorted(tensors)):
            weight_map[name] = shard_name(index % 4 + 1)

    wanted = {half: load_half(str(folder), half).model.state_dict() for half in HALVES}
    rewrite(folder, scatter)
    for half in HALVES:
        found = load_half(str(folder), half).model.state_dict()
        assert all(torch.equal(found[name], each) for name, each in wanted[half].items())


def test_halves_give_the_tokens_of_the_whole():
    """On the golden checkpoint, in both precisions."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    torch.manual_seed(0)
    pixels = torch.randn(3, 3, 56, 56)
    row = [1] + [*[3] * 6, 20] * 3 + [40, 41]
    types = [0] + [*[1] * 6, 0] * 3 + [0, 0]
    prompt = {"input_ids": torch.tensor([row]), "token_type_ids": torch.tensor([types])}
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}
    for dtype in (torch.float32, torch.bfloat16):
        whole = WholeModel.of(Checkpoint.open(str(MINI)))
        wanted = load_whole(whole, dtype=dtype).generate(
            **prompt, pixel_values_videos=pixels, **options
        )
        vision = load_half(whole, "vision", dtype=dtype).model
        with torch.inference_mode():
            features = vision.get_video_features(pixels).pooler_output
        video = BaseModelOutputWithPooling(pooler_output=[features.clone()])
        language = load_half(whole, "language", dtype=dtype).model
        found = language.generate(**prompt, mm_encoder_outputs={"video": video}, **options)
        assert torch.equal(found, wanted)


def test_settings_of_the_model_can_be_changed_before_it_is_built(folder):
    whole = WholeModel.of(Checkpoint.open(str(folder)), rotary_dtype="float32")
    assert not load_half(whole, "language").model.model.language_model.rotary_emb.in_bfloat16


def test_the_shards_of_the_helper_are_laid_out_as_the_published_ones():
    names = random_tensors(SMALL)
    vision = {published_shard(name, 1) for name in names if name.startswith("model.vision.")}
    language = {published_shard(name, 1) for name in names if not name.startswith("model.vision.")}
    assert sorted(vision) == SHARDS["vision"]
    assert sorted(language) == SHARDS["language"]
