"""A model's checkpoint: its config, which tensor lies in which shard, and views of a part of it.

A checkpoint is a folder, a hub id, or `tiny`, the one in the package. Of a hub id only the
small files come at once; shards come when a half asks for them. Nothing here loads torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogcache.errors import CheckpointError, ConfigError, MissingShardError, TruncatedShardError
from cogcache.models.checkpoints.bounds import (
    check_config,
    check_files,
    check_layers,
    check_model_name,
    check_rewritten,
    check_shard_name,
    read_json,
)
from cogcache.models.checkpoints.headers import TensorInfo, read_header, read_tensor
from cogcache.models.checkpoints.split_manifest import MANIFEST, Settings, SplitManifest, kept_rows
from cogcache.system import extra_hint, fetch_files

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
REWRITTEN = "cogcache-rewritten.json"
"""Manifest of a checkpoint with a new language half and the vision half of another."""
SINGLE = "model.safetensors"
LEGAL_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*", "README.md")
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", *LEGAL_FILES)
VOLATILE_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map")
"""Config keys that say nothing about what the weights compute."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder and, for a hub id, where its shards come from."""

    model: str
    folder: Path
    revision: str | None = None
    on_hub: bool = False

    @classmethod
    def open(cls, model: str, revision: str | None = None) -> Checkpoint:
        """Find a checkpoint: `tiny`, a folder, or a hub id whose small files are fetched.

        Raises:
            CheckpointError: it is nowhere to be found, or has no config.json.
        """
        checkpoint = _found(model, revision)
        if not (checkpoint.folder / "config.json").is_file():
            raise CheckpointError(
                f"{model} has no config.json", "give a model's folder or its id on the hub"
            )
        _check_small_files(checkpoint)
        if (checkpoint.folder / MANIFEST).is_file():
            return SplitCheckpoint(model, checkpoint.folder, revision, checkpoint.on_hub)
        if (checkpoint.folder / REWRITTEN).is_file():
            return RewrittenCheckpoint(model, checkpoint.folder, revision, checkpoint.on_hub)
        return checkpoint

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json, within bounds."""
        path = self.folder / "config.json"
        config = read_json(path)
        check_config(config, path)
        return config

    @property
    def architecture(self) -> str:
        """The class that config.json names first; `none` where it names no class."""
        match self.config.get("architectures"):
            case [str(name), *_]:
                return name
            case _:
                return "none"

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """Shard of every tensor. Of the index, so that no shard need be there for it."""
        if (self.folder / INDEX).is_file():
            index = read_json(self.folder / INDEX)
            shards = index.get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
                raise CheckpointError(f"{self.folder / INDEX} has no weight_map", "fetch it anew")
            for shard in set(shards.values()):
                check_shard_name(shard, self.folder / INDEX)
            return shards
        self.fetch([SINGLE])
        return dict.fromkeys(read_header(self.folder / SINGLE), SINGLE)

    def check_layers(self) -> None:
        """Hold the config against the tensors, where it is known here which these are.

        Raises:
            CheckpointError: the config claims many more layers than there are tensors of.
        """
        if any((self.folder / name).is_file() for name in (INDEX, SINGLE, MANIFEST)):
            check_layers(self.config, self.weight_map, self.folder / "config.json")

    def shards_of(self, names: Iterable[str]) -> list[str]:
        """Return the shards that hold any of `names`, sorted."""
        return sorted({self.weight_map[name] for name in names})

    def fetch(self, shards: Collection[str]) -> None:
        """See that `shards` are in the folder; download the absent ones of a hub id."""
        absent = [shard for shard in shards if not (self.folder / shard).is_file()]
        if absent and self.on_hub:
            # Of the same commit as the small files: a branch may have moved on in between.
            fetch_files(self.model, self.folder.name, absent)
        for shard in shards:
            if not (self.folder / shard).is_file():
                raise MissingShardError(f"{self.folder / shard} is missing", f"fetch {shard}")

    def tensors(self, names: Collection[str]) -> dict[str, TensorInfo]:
        """Describe `names` from the headers of the shards that hold them, and no others.

        Raises:
            TruncatedShardError: a shard is cut short, or lacks a tensor that the index puts there.
        """
        shards = self.shards_of(names)
        self.fetch(shards)
        found = {k: v for shard in shards for k, v in read_header(self.folder / shard).items()}
        if absent := sorted(set(names) - set(found)):
            shard = self.weight_map[absent[0]]
            problem = f"{shard} lacks {absent[0]} and {len(absent) - 1} more that the index names"
            raise TruncatedShardError(problem, f"fetch {shard} anew")
        return {name: found[name] for name in names}

    def stored(self, names: Collection[str]) -> dict[str, str]:
        """Return under which names, in which files, the tensors `names` are stored."""
        return {name: self.weight_map[name] for name in names}

    def files_of(self, names: Collection[str]) -> list[str]:
        """Return the files that `names` are read from, sorted."""
        return sorted(set(self.stored(names).values()))

    def bytes_by_file(self, names: Collection[str]) -> dict[str, int]:
        """Return how many bytes of each file are read for `names`."""
        read: Counter[str] = Counter()
        headers = {file: read_header(self.folder / file) for file in self.files_of(names)}
        for name, file in self.stored(names).items():
            read[file] += headers[file][name].num_bytes
        return dict(read)

    def view(self, names: Collection[str], target: Path) -> None:
        """Make `target` look like a checkpoint that holds only `names`.

        Shards are linked, not copied; those without any of `names` are left out.
        """
        stored = self.stored(names)
        shards = self.files_of(names)
        self.fetch(shards)
        for file in (*self.folder.glob("*.json"), *(self.folder / shard for shard in shards)):
            if file.name != INDEX:
                (target / file.name).symlink_to(file.resolve())
        if shards != [SINGLE]:
            index = {"metadata": {}, "weight_map": dict(sorted(stored.items()))}
            (target / INDEX).write_text(json.dumps(index))

    def is_stored_as(self, names: Collection[str], dtype: str, quantization: Settings) -> bool:
        """Say whether `names` are stored in the quantised form that is asked for.

        Args:
            names: tensors of a half.
            dtype: of the half's weights that are not quantised, as torch calls it.
            quantization: what is asked for, as it goes into keys; empty for none.

        Raises:
            QuantizationError: they are stored in another form, from which the one that is asked
                for cannot be had.
        """
        return False

    def originals(self, name: str) -> tuple[list[int] | slice, Tensor]:
        """Return rows of a weight as it was before any quantisation, and which rows they are."""
        return slice(None), read_tensor(self.folder / self.weight_map[name], name)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, as the index or the single shard says; 0 where it does not."""
        if (self.folder / INDEX).is_file():
            metadata = read_json(self.folder / INDEX).get("metadata")
            size = metadata.get("total_size", 0) if isinstance(metadata, dict) else 0
            # Some indexes have it as a float.
            return int(size) if isinstance(size, int | float) and 0 <= size < 2**63 else 0
        return sum(info.num_bytes for info in read_header(self.folder / SINGLE).values())

    def small_files(self, *, legal: bool = False) -> list[Path]:
        """Return config, tokenizer and processor files: all but weights, sorted by name.

        Args:
            legal: with licences and the like.
        """
        files = {path for pattern in SMALL_FILES for path in self.folder.glob(pattern)}
        if not legal:
            files -= {path for pattern in LEGAL_FILES for path in self.folder.glob(pattern)}
        return sorted(path for path in files if path.name != INDEX)

    def digest(self, names: Collection[str], digest_of: Callable[[Path], str]) -> str:
        """Return the SHA-256 that stands for the weights `names` and what is computed with them.

        Args:
            names: tensors of a half.
            digest_of: SHA-256 of a file; the caller remembers them, shards are large.
        """
        from cogcache.keys import digest

        described = self.tensors(names)
        config = {k: v for k, v in self.config_of(names).items() if k not in VOLATILE_KEYS}
        fields: Mapping[str, Any] = {
            "config": json.dumps(config, sort_keys=True),
            "tensors": [
                f"{info.name} {info.dtype} {info.shape}" for _, info in sorted(described.items())
            ],
            "shards": [self.shard_digest(shard, digest_of) for shard in self.shards_of(names)],
        }
        return digest(fields)

    def config_of(self, names: Collection[str]) -> dict[str, Any]:
        """Return the config that says what is computed with `names`."""
        return self.config

    def shard_digest(self, shard: str, digest_of: Callable[[Path], str]) -> str:
        """Return a shard's SHA-256: the hub's own, where its cache names the file by it."""
        blob = (self.folder / shard).resolve().name
        if self.on_hub and len(blob) == 64 and set(blob) <= set("0123456789abcdef"):
            return blob
        return digest_of(self.folder / shard)


def _found(model: str, revision: str | None) -> Checkpoint:
    """Return a checkpoint as it is named; of a hub id, the small files are fetched."""
    if not model:
        raise ConfigError("no model is named", "name one with --model, such as a hub id")
    if model == "tiny":
        return Checkpoint(model, Path(__file__).parents[2] / "tiny")
    if Path(model).is_dir():
        return Checkpoint(model, Path(model))
    check_model_name(model)
    folder = fetch_files(model, revision, SMALL_FILES)
    return Checkpoint(model, folder, revision, on_hub=True)


def _check_small_files(checkpoint: Checkpoint) -> None:
    try:
        check_files(checkpoint.folder, checkpoint.small_files())
    except OSError as error:
        problem = f"{checkpoint.folder} cannot be read: {error.strerror}"
        raise CheckpointError(problem, "see who may read it") from error


class RewrittenCheckpoint(Checkpoint):
    """A checkpoint with a language half of its own, and the vision half of another.

    Its vision half is that of the other to the last bit, so it goes by the other's config in keys:
    how many layers the decoder has does not matter to features.
    """

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the folder says of itself."""
        manifest = read_json(self.folder / REWRITTEN)
        if manifest.get("format") != 1:
            problem = f"{self.folder / REWRITTEN} is of format {manifest.get('format')}, not 1"
            raise CheckpointError(problem, f"update cogcache; {extra_hint()}")
        check_rewritten(manifest, self.folder / REWRITTEN)
        return manifest

    @property
    def copied(self) -> Mapping[str, Mapping[str, str]]:
        """Files that hold a part of another model's shard, with the digests of both."""
        found: dict[str, dict[str, str]] = self.manifest.get("copied", {})
        return found

    def shard_digest(self, shard: str, digest_of: Callable[[Path], str]) -> str:
        """Return a shard's SHA-256; of a part of another model's shard, that of the whole of it.

        Raises:
            CheckpointError: the part does not hold what was copied.
        """
        found = super().shard_digest(shard, digest_of)
        if (copied := self.copied.get(shard)) is None:
            return found
        if found != copied["sha256"]:
            problem = f"{self.folder / shard} does not hold the bytes that were copied into it"
            raise CheckpointError(problem, "copy the folder anew, or make it anew")
        return copied["from_sha256"]

    def config_of(self, names: Collection[str]) -> dict[str, Any]:
        """See `Checkpoint.config_of`; of the vision half, that of the model that it is from."""
        config: dict[str, Any] = self.manifest["vision_config"]
        return config if set(names) <= set(self.manifest["vision"]) else self.config


def stored_method(checkpoint: Checkpoint) -> str | None:
    """Return how `config.json` says that weights are quantised, such as `awq`; None: not so.

    The manifest of a split says it of that.
    """
    told = checkpoint.config.get("quantization_config")
    method = told.get("quant_method") if isinstance(told, dict) else None
    return str(method) if method else None


class SplitCheckpoint(Checkpoint):
    """A checkpoint that `cogcache split` wrote: it describes its original, whose keys it shares.

    Names, shapes, shards and digests are the original's; the bytes lie in files of its own, those
    of a quantised language half in another form.
    """

    @cached_property
    def manifest(self) -> SplitManifest:
        """What the folder says of itself."""
        return SplitManifest.read(self.folder)

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """Shard of the original that held each tensor."""
        return {name: tensor.shard for name, tensor in self.manifest.tensors.items()}

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors of the original."""
        return self.manifest.total_bytes

    def described(self, names: Collection[str]) -> dict[str, TensorInfo]:
        """Describe `names` as they were in the original; no file is needed for it."""
        known = self.manifest.tensors
        return {
            name: TensorInfo(name, known[name].dtype, known[name].shape, known[name].num_bytes)
            for name in names
        }

    def tensors(self, names: Collection[str]) -> dict[str, TensorInfo]:
        """Describe `names` as they were in the original; what holds them now must be whole."""
        self.fetch(self.files_of(names))
        self.bytes_by_file(names)
        return self.described(names)

    def stored(self, names: Collection[str]) -> dict[str, str]:
        """Return the names and files of what is stored: quantised forms have names of their own."""
        copied, files = self.manifest.files_for(names)
        self.fetch(files)
        return copied | {name: file for file in files for name in read_header(self.folder / file)}

    def is_stored_as(self, names: Collection[str], dtype: str, quantization: Settings) -> bool:
        """See `Checkpoint.is_stored_as`; a copy in a narrower type is refused as well."""
        copied, files = self.manifest.files_for(names)
        headers = {file: read_header(self.folder / file) for file in set(copied.values())}
        now = {name: headers[file][name].dtype for name, file in copied.items()}
        return self.manifest.check_asked(self.model, now, bool(files), dtype, quantization)

    def originals(self, name: str) -> tuple[list[int] | slice, Tensor]:
        """See `Checkpoint.originals`: some rows of each weight were kept for this."""
        tensor, quantized = self.manifest.tensors[name], self.manifest.quantized
        if quantized is None or name not in quantized.tensors:
            return slice(None), read_tensor(self.folder / str(tensor.file), name)
        rows = kept_rows(tensor.shape[0])
        return rows, read_tensor(self.folder / quantized.originals, name)

    def digest(self, names: Collection[str], digest_of: Callable[[Path], str]) -> str:
        """Return the digest that `names` have in the original.

        Raises:
            CheckpointError: a file is not the one that was written by the split.
        """
        files = {*self.files_of(names), *self.manifest.beside(names)}
        self.fetch(files)
        for file in sorted(files):
            if digest_of(self.folder / file) != self.manifest.files.get(file):
                problem = f"{self.folder / file} does not hold the bytes that were split off"
                raise CheckpointError(problem, "copy the folder anew, or split the original anew")
        return super().digest(names, digest_of)

    def shard_digest(self, shard: str, digest_of: Callable[[Path], str]) -> str:
        """Return the SHA-256 of a shard of the original."""
        return self.manifest.shards[shard]
