"""How large each half is, from headers alone: what `plan` adds up and what offloading divides."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from cogcache.errors import CheckpointError
from cogcache.models.checkpoints.checkpoint import Checkpoint, SplitCheckpoint
from cogcache.models.checkpoints.headers import TensorInfo
from cogcache.models.halves.partition import Half, ModulePaths, Partition
from cogcache.models.quantization.layers import Quantization, held_bytes, left_out, linear_layers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ITEM_BYTES = {"bfloat16": 2, "float32": 4}


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


@dataclass(frozen=True, slots=True)
class LanguageSizes:
    """Bytes of the language half as it is held: quantised where that was asked for."""

    num_layers: int
    layer_bytes: int
    """Of the largest block."""
    embedding_bytes: int
    embedding_can_wait: bool
    """Whether it need not be where the half runs."""
    head_bytes: int
    """Of the output head; 0 where it is the embedding."""
    other_bytes: int
    """Norms, a projector that belongs to this half, and an adapter on it."""
    largest_matrix: int
    """Parameters of the largest matrix that a product of many rows dequantises; 0 where none."""
    quantized_bytes: int
    """Of all of it what is in quantised matrices."""
    scale_bytes: int
    """Of these what are scales and tables."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        beside = self.embedding_bytes + self.head_bytes + self.other_bytes
        return self.num_layers * self.layer_bytes + beside

    @property
    def plain_bytes(self) -> int:
        """What is not quantised."""
        return self.total_bytes - self.quantized_bytes


def language_sizes(
    meta: PreTrainedModel,
    modules: ModulePaths,
    quantization: Quantization,
    item_bytes: int,
    *,
    on_cpu: bool,
    adapter_bytes: int = 0,
) -> LanguageSizes:
    """Add up the language half from shapes.

    Args:
        meta: the whole model on meta.
        modules: which of its modules are of which half.
        quantization: what is asked for.
        item_bytes: of a parameter that is not quantised.
        on_cpu: whether it runs there.
        adapter_bytes: of an adapter that is put onto it.
    """
    weighed = _Weighed(quantization, item_bytes, on_cpu)
    embedding, head = (path_of(meta, end) for end in (meta.get_input_embeddings(), _head(meta)))
    layers = _quantized_weights(meta, quantization)
    blocks: dict[str, int] = defaultdict(int)
    beside: dict[str, int] = defaultdict(int)
    for name, parameter in meta.named_parameters():
        if modules.half_of(name) == "vision":
            continue
        size = weighed.size(parameter, is_quantized=name in layers)
        if block := block_of(name):
            blocks[block] += size
        else:
            beside[name.rpartition(".")[0]] += size
    embedding_bytes = beside.pop(embedding, 0) if embedding else 0
    head_bytes = beside.pop(head, 0) if head else 0
    if quantization.head != "none" and head:
        weight = meta.get_parameter(f"{head}.weight")
        head_bytes = weighed.quantized(weight, quantization.of_head)
    stack = _main_stack(blocks)
    other_bytes = sum(beside.values()) + sum(blocks.values()) - sum(stack.values()) + adapter_bytes
    return LanguageSizes(
        num_layers=len(stack),
        layer_bytes=max(stack.values(), default=0),
        embedding_bytes=embedding_bytes,
        embedding_can_wait=embedding_can_wait(meta),
        head_bytes=head_bytes,
        other_bytes=other_bytes,
        largest_matrix=weighed.largest_matrix,
        quantized_bytes=weighed.quantized_bytes,
        scale_bytes=weighed.scale_bytes,
    )


def _quantized_weights(meta: PreTrainedModel, quantization: Quantization) -> set[str]:
    """Return the names of the weights that are quantised."""
    if quantization.kind == "none":
        return set()
    left = {*left_out(meta, quantization)}
    return {f"{path}.weight" for path, _ in linear_layers(meta) if path not in left}


@dataclass
class _Weighed:
    """Adds up what of the parameters seen so far is quantised."""

    quantization: Quantization
    item_bytes: int
    on_cpu: bool
    largest_matrix: int = 0
    quantized_bytes: int = 0
    scale_bytes: int = 0

    def size(self, parameter: nn.Parameter, *, is_quantized: bool) -> int:
        """Return the bytes of one of the half's parameters."""
        if not is_quantized:
            return parameter.numel() * self.item_bytes
        if self.quantization.kind != "int4":  # its product dequantises nothing in memory
            self.largest_matrix = max(self.largest_matrix, parameter.numel())
        return self.quantized(parameter, self.quantization)

    def quantized(self, matrix: nn.Parameter, quantization: Quantization) -> int:
        """Return the bytes of a quantised matrix."""
        rows, columns = matrix.shape
        size = held_bytes(rows, columns, quantization, on_cpu=self.on_cpu)
        self.quantized_bytes += size
        self.scale_bytes += size - quantization.bits * matrix.numel() // 8
        return size


def _head(meta: PreTrainedModel) -> nn.Module | None:
    head: nn.Module | None = meta.get_output_embeddings()
    return head


def describe(checkpoint: Checkpoint, names: tuple[str, ...]) -> Mapping[str, TensorInfo]:
    """Return name, type and shape of tensors; of a hub id by reading headers over the net."""
    if isinstance(checkpoint, SplitCheckpoint):
        return checkpoint.described(names)
    shards = checkpoint.shards_of(names)
    if not checkpoint.on_hub or all((checkpoint.folder / shard).is_file() for shard in shards):
        return checkpoint.tensors(names)
    headers = _remote_headers(checkpoint.model, checkpoint.folder.name)
    return {name: headers[name] for name in names}


@cache
def _remote_headers(model: str, commit: str) -> Mapping[str, TensorInfo]:
    """Read the headers of all shards of a commit: once for both halves and all cache points."""
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HfHubHTTPError

    try:
        metadata = get_safetensors_metadata(model, revision=commit)
    except (HfHubHTTPError, OSError) as error:
        problem = f"the headers of {model} cannot be fetched: {error}"
        raise CheckpointError(problem, "check the network, or give a folder") from error
    return {
        name: TensorInfo(
            name, info.dtype, tuple(info.shape), info.data_offsets[1] - info.data_offsets[0]
        )
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    }


def block_of(parameter: str) -> str | None:
    """Return the block that a parameter is in, such as `model.vision.transformer.layers.3`."""
    match = re.match(r"(.+?\.\d+)\.", parameter)
    return match[1] if match else None


def block_paths(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    """Return the paths of a half's blocks in order: those of its largest stack."""
    blocks: dict[str, int] = defaultdict(int)
    for name, parameter in parameters:
        if block := block_of(name):
            blocks[block] += parameter.numel()
    return list(_main_stack(blocks))


def is_tied(model: PreTrainedModel) -> bool:
    """Say whether the embedding and the output head are one tensor, or one of them is another's."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {f"{path_of(model, end)}.weight" for end in ends}
    tied = model.all_tied_weights_keys
    return bool(names & {*tied.keys(), *tied.values()})


def embedding_can_wait(model: PreTrainedModel) -> bool:
    """Say whether the embedding is a plain table that nothing else reads."""
    from torch import nn

    embedding = model.get_input_embeddings()
    return isinstance(embedding, nn.Embedding) and not is_tied(model)


def path_of(model: PreTrainedModel, part: nn.Module | None) -> str:
    """Return the path of a module within a model; none has none."""
    return next((path for path, module in model.named_modules() if module is part), "")


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
