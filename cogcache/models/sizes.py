"""How large each half is, from headers alone: what `plan` adds up and what offloading divides."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cogcache.checkpoint import Checkpoint, SplitCheckpoint
from cogcache.errors import CheckpointError
from cogcache.headers import TensorInfo
from cogcache.models.partition import Half, Partition

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class HalfSizes:
    """Parameters of one half: its blocks, which can be offloaded one by one, and the rest."""

    num_layers: int
    layer_parameters: int
    """Of the largest block."""
    other_parameters: int
    """Embeddings, projector, output head: what stays where the inputs are."""

    @property
    def num_parameters(self) -> int:
        """All of them, taking every block for as large as the largest."""
        return self.num_layers * self.layer_parameters + self.other_parameters


def half_sizes(checkpoint: Checkpoint, partition: Partition, half: Half) -> HalfSizes:
    """Add up a half from the headers of its shards; of a hub id no shard is downloaded."""
    infos = describe(checkpoint, partition.names(half))
    total = sum(info.num_parameters for info in infos.values())
    blocks: dict[str, int] = defaultdict(int)
    for name, info in infos.items():
        if block := block_of(partition.targets[name]):
            blocks[block] += info.num_parameters
    kept = _main_stack(blocks)
    in_blocks = sum(kept.values())
    return HalfSizes(len(kept), max(kept.values(), default=0), total - in_blocks)


def describe(checkpoint: Checkpoint, names: tuple[str, ...]) -> Mapping[str, TensorInfo]:
    """Return name, type and shape of tensors; of a hub id by reading headers over the net."""
    if isinstance(checkpoint, SplitCheckpoint):
        return checkpoint.described(names)
    shards = checkpoint.shards_of(names)
    if not checkpoint.on_hub or all((checkpoint.folder / shard).is_file() for shard in shards):
        return checkpoint.tensors(names)
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HfHubHTTPError

    try:
        metadata = get_safetensors_metadata(checkpoint.model, revision=checkpoint.revision)
    except (HfHubHTTPError, OSError) as error:
        problem = f"the headers of {checkpoint.model} cannot be fetched: {error}"
        raise CheckpointError(problem, "check the network, or give a folder") from error
    wanted = set(names)
    return {
        name: TensorInfo(
            name, info.dtype, tuple(info.shape), info.data_offsets[1] - info.data_offsets[0]
        )
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
        if name in wanted
    }


def block_of(parameter: str) -> str | None:
    """Return the block that a parameter is in, such as `model.vision.transformer.layers.3`."""
    match = re.match(r"(.+?\.\d+)\.", parameter)
    return match[1] if match else None


def block_paths(model: PreTrainedModel) -> list[str]:
    """Return the paths of a half's blocks in order: those of its largest stack."""
    blocks: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if block := block_of(name):
            blocks[block] += parameter.numel()
    return list(_main_stack(blocks))


def _main_stack(blocks: Mapping[str, int]) -> dict[str, int]:
    """Of all blocks keep those of the stack that holds most parameters."""
    stacks: dict[str, int] = defaultdict(int)
    for block, parameters in blocks.items():
        stacks[block.rpartition(".")[0]] += parameters
    if not stacks:
        return {}
    largest = max(stacks, key=lambda stack: stacks[stack])
    return {
        block: parameters
        for block, parameters in blocks.items()
        if block.rpartition(".")[0] == largest
    }
