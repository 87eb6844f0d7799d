"""Writes the halves of a checkpoint as files of their own, the language half quantised already.

Vision tensors are copied under their published names; the language half is loaded as stage two
loads it and written as it is in memory. What is in a half or not can depend on the cache point:
such tensors lie in files of their own, so that a split serves all cache points.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cogcache.errors import CheckpointError, ConfigError, QuantizationError
from cogcache.models.checkpoints.checkpoint import Checkpoint, SplitCheckpoint
from cogcache.models.checkpoints.headers import read_tensor
from cogcache.models.checkpoints.split_manifest import (
    MANIFEST,
    OriginalTensor,
    QuantizedHalf,
    SplitManifest,
    kept_rows,
)
from cogcache.models.checkpoints.tensor_files import TensorFiles, sha256_of, sync_file
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.halves.partition import Half, Partition, loaded_types
from cogcache.models.halves.sizes import ITEM_BYTES, half_sizes, language_sizes, path_of
from cogcache.models.quantization.automatic import choose_quantization
from cogcache.models.quantization.layers import Quantization, kind_of, linear_layers
from cogcache.models.registry import family_of
from cogcache.settings import Settings
from cogcache.system import (
    ended_by_signals,
    make_folder,
    pick_device,
    put_right,
    sync_folder,
    temporary_name,
    version_of,
)
from cogcache.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SPARE_BYTES = 64 * 1024**2
HALVES: tuple[Half, Half] = ("vision", "language")
LIBRARIES = ("cogcache", "torch", "transformers", "bitsandbytes", "safetensors")


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What was written."""

    folder: Path
    bytes_by_file: Mapping[str, int]
    original_bytes: int
    quantization: str | None
    """What verifying the language half found."""
    is_new: bool = True
    """Whether it was written now; else the same split was there, and all of it is whole."""

    def lines(self) -> list[str]:
        """Return what a reader wants to know."""
        written = sum(self.bytes_by_file.values())
        whole = format_bytes(self.original_bytes)
        lines = [f"{self.folder}: {format_bytes(written)}, the original has {whole}"]
        if not self.is_new:
            lines.append("  it was there already, and is whole: nothing was written")
        for kind in ("vision", "both", "language", "originals"):
            found = [size for name, size in self.bytes_by_file.items() if name.startswith(kind)]
            if found:
                lines.append(f"  {kind}: {format_bytes(sum(found))} in {len(found)} files")
        return [*lines, *([f"  {self.quantization}"] if self.quantization else [])]


def split(model: str, out: Path, settings: Settings) -> SplitReport:
    """Write the halves of a checkpoint to a new folder, which is there when all of it is.

    Args:
        model: a folder, a hub id, or `tiny`.
        out: the folder to be; there must be none, an empty one, or the same split, which stays.
        settings: the revision, the device to quantise on, both halves' precision.

    Raises:
        ConfigError: the folder is there with something else in it, or the disk has no room.
        CheckpointError: the checkpoint cannot be read, or is a split itself.
        QuantizationError: the language half does not suit the precision.
    """
    checkpoint = Checkpoint.open(model, settings.revision)
    if isinstance(checkpoint, SplitCheckpoint):
        raise CheckpointError(f"{model} is split already", "split the original")
    is_there = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if is_there and not (out / MANIFEST).is_file():
        raise ConfigError(f"{out} is there already", "give a folder that is not there")
    job = _Split(checkpoint, settings)
    checkpoint.fetch(checkpoint.shards_of(job.names))
    if is_there:
        return _report_of_same(job, out)
    make_folder(out.absolute().parent)
    put_right(out.absolute())
    job.check_disk(out.absolute().parent)
    partial = temporary_name(out.absolute())
    with ended_by_signals():
        try:
            partial.mkdir()
            report = job.write(partial, out)
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    sync_folder(out.absolute().parent)
    return report


def _report_of_same(job: _Split, out: Path) -> SplitReport:
    """Return the report of a split that is there, once all its files have been read.

    Raises:
        ConfigError: it is of another checkpoint or precision.
        CheckpointError: a file of it is damaged or missing.
    """
    there = SplitCheckpoint(str(out), out)
    if not _is_same(job, there):
        problem = f"{out} is there already, and is a split of another checkpoint or precision"
        raise ConfigError(problem, "give a folder that is not there")
    there.digest(job.names, sha256_of)
    sizes = {name: (out / name).stat().st_size for name in there.manifest.files}
    return SplitReport(out, sizes, job.original_bytes, None, is_new=False)


def _is_same(job: _Split, there: SplitCheckpoint) -> bool:
    """Say whether a split is of the same checkpoint, and can be loaded as is asked for."""
    kind, manifest = job.quantization.kind, there.manifest
    if there.described(manifest.tensors) != job.checkpoint.tensors(job.names):
        return False
    try:
        for half in HALVES:
            is_quantized = half == "language" and kind != "none"
            asked = job.quantization.fields() if is_quantized else {}
            there.is_stored_as(job.partition.names(half), job.dtype(half), asked)
    except QuantizationError:
        return False
    shards = job.checkpoint.shards_of(job.names)
    digests = {shard: job.checkpoint.shard_digest(shard, sha256_of) for shard in shards}
    return manifest.shards == digests and (manifest.quantized is None) == (kind == "none")


@dataclass
class _Split:
    """A checkpoint that is being split."""

    checkpoint: Checkpoint
    settings: Settings
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file that is written."""
    homes: dict[str, str] = field(default_factory=dict)
    """File of each tensor that was copied."""
    quantized: QuantizedHalf | None = None
    quantization_summary: str | None = None

    def __post_init__(self) -> None:
        self.family = family_of(self.checkpoint)
        self.whole = WholeModel.of(self.checkpoint, **self.family.partition_settings())
        self.settings = choose_quantization(self.settings, self.family).settings
        language = self.settings.language
        self.quantization = replace(Quantization.of(language), head="none")

    @property
    def partition(self) -> Partition:
        """Which tensors are in which half, at the usual cache point."""
        return self.whole.partition

    @cached_property
    def names(self) -> list[str]:
        """Names of all tensors of both halves."""
        return sorted({name for half in HALVES for name in self.partition.names(half)})

    @cached_property
    def between(self) -> set[str]:
        """Names of tensors that are in both halves, or in another one at another cache point."""
        moving = {*self.partition.shared}
        for point in self.family.cache_points:
            settings = self.family.at(point).partition_settings()
            there = WholeModel.of(self.checkpoint, **settings).partition
            moving |= {*there.vision} ^ {*self.partition.vision}
        return moving

    def check_disk(self, folder: Path) -> None:
        """See that there is room for what will be written.

        Raises:
            ConfigError: there is not.
        """
        needed, free = self.expected_bytes + SPARE_BYTES, shutil.disk_usage(folder).free
        if needed > free:
            problem = f"{format_bytes(needed)} are needed in {folder}, {format_bytes(free)} free"
            raise ConfigError(problem, "make room, or give a folder on another disk")

    @cached_property
    def expected_bytes(self) -> int:
        """Bytes that will be written, roughly."""
        vision = half_sizes(self.checkpoint, self.partition, "vision")
        meta, modules, item_bytes = self.whole.meta, self.partition.modules, ITEM_BYTES
        language = language_sizes(
            meta, modules, self.quantization, item_bytes[self.dtype("language")], on_cpu=False
        )
        return vision.num_parameters * ITEM_BYTES[self.dtype("vision")] + language.total_bytes

    @property
    def original_bytes(self) -> int:
        """Bytes of the tensors of both halves in the original."""
        return sum(info.num_bytes for info in self.checkpoint.tensors(self.names).values())

    def write(self, folder: Path, out: Path) -> SplitReport:
        """Write all files, the manifest last."""
        for path in self.checkpoint.small_files(legal=True):
            shutil.copyfile(path, folder / path.name)
            sync_file(folder / path.name)
        shards = self.checkpoint.shards_of(self.names)
        read_bytes = sum((self.checkpoint.folder / shard).stat().st_size for shard in shards)
        total = self.expected_bytes + read_bytes
        with tqdm(total=total, unit="B", unit_scale=True, desc="split", disable=None) as bar:
            writer = TensorFiles(folder, bar, self.files)
            self._copy(writer)
            if self.quantization.kind != "none":
                self._quantize(writer)
            digests = {shard: self._digest(shard, bar) for shard in shards}
            bar.total = bar.n
        manifest = folder / MANIFEST
        manifest.write_text(self._manifest(digests).to_json(), encoding="utf-8")
        sync_file(manifest)
        sync_folder(folder)
        sizes = {name: (folder / name).stat().st_size for name in self.files}
        return SplitReport(out, sizes, self.original_bytes, self.quantization_summary)

    def _copy(self, writer: TensorFiles) -> None:
        """Copy every tensor that is not going to be stored quantised, in three groups of files."""
        groups: dict[str, tuple[Half, set[str]]] = {
            "vision": ("vision", {*self.partition.vision} - self.between),
            "both": ("vision", self.between),
        }
        if self.quantization.kind == "none":
            groups["language"] = ("language", {*self.partition.language} - self.between)
        for group, (half, names) in groups.items():
            for file, held in writer.write(group, self._tensors(sorted(names), half)):
                self.homes |= dict.fromkeys(held, file)

    def _tensors(self, names: Iterable[str], half: Half) -> Iterator[tuple[str, Tensor]]:
        """Read tensors, in the type that the half is loaded in where that is narrower."""
        types = loaded_types(self.whole.cls, self.whole.config, self.dtype(half))
        for name in names:
            path = self.checkpoint.folder / self.checkpoint.weight_map[name]
            tensor = read_tensor(path, name)
            wanted = types.get(self.partition.targets[name], tensor.dtype)
            is_wider = tensor.is_floating_point() and tensor.itemsize > wanted.itemsize
            yield name, tensor.to(wanted) if is_wider else tensor

    def dtype(self, half: Half) -> str:
        """Return the type in which a half is stored where it is not quantised."""
        vision, language = self.settings.vision, self.settings.language
        return vision.vision_dtype if half == "vision" else language.compute_dtype

    def _quantize(self, writer: TensorFiles) -> None:
        """Load the language half as stage two does, and write it as it is in memory."""
        import torch

        whole = WholeModel.of(
            self.checkpoint, **self.family.config_overrides(self.settings.language)
        )
        loaded = load_half(
            whole,
            "language",
            dtype=getattr(torch, self.quantization.compute_dtype),
            device=pick_device(self.settings.device),
            quantization=self.quantization,
        )
        assert loaded.quantization is not None
        self.quantization_summary = loaded.quantization.summary()
        files = [file for file, _ in writer.write("language", _state(loaded.model))]
        rows = self._rows(loaded.model)
        del loaded
        gc.collect()
        [(originals, _)] = writer.write("originals", rows)
        self.quantized = QuantizedHalf(
            settings=self.quantization.fields(),
            tensors=self.partition.language,
            shared=self.partition.shared,
            files=tuple(files),
            originals=originals,
        )

    def _rows(self, model: PreTrainedModel) -> list[tuple[str, Tensor]]:
        """Cut the rows that every loading compares with from weights that may be quantised."""
        targets = {target: name for name, target in self.partition.targets.items()}
        described = self.checkpoint.tensors(self.partition.language)
        folder, weight_map = self.checkpoint.folder, self.checkpoint.weight_map
        found, head = [], model.get_output_embeddings()
        for path, layer in linear_layers(model):
            name = targets.get(f"{path}.weight")
            if layer is head:  # stored as it is, and quantised on request by whoever loads it
                name = name or targets[f"{path_of(model, model.get_input_embeddings())}.weight"]
            elif name is None or kind_of(layer) == "none":
                continue
            if described[name].shape == (layer.out_features, layer.in_features):
                weight = read_tensor(folder / weight_map[name], name)
                found.append((name, weight[kept_rows(len(weight))]))
        return found

    def _digest(self, shard: str, bar: tqdm[Any]) -> str:
        digest = self.checkpoint.shard_digest(shard, sha256_of)
        bar.update((self.checkpoint.folder / shard).stat().st_size)
        return digest

    def _manifest(self, shards: Mapping[str, str]) -> SplitManifest:
        described = self.checkpoint.tensors(self.names)
        return SplitManifest(
            model=self.checkpoint.model,
            revision=self.checkpoint.folder.name if self.checkpoint.on_hub else None,
            total_bytes=self.checkpoint.total_bytes,
            shards=shards,
            tensors={
                name: OriginalTensor(
                    shard=self.checkpoint.weight_map[name],
                    dtype=info.dtype,
                    shape=info.shape,
                    num_bytes=info.num_bytes,
                    file=self.homes.get(name),
                )
                for name, info in described.items()
            },
            quantized=self.quantized,
            files=self.files,
            made_with={library: version_of(library) for library in LIBRARIES},
        )


def _state(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield what a half consists of, by its names in memory; tied tensors once."""
    for name, tensor in model.state_dict().items():
        if name not in model.all_tied_weights_keys:
            yield name, tensor
