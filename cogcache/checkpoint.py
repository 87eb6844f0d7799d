"""A model's checkpoint: its config, which tensor lies in which shard, and views of a part of it.

A checkpoint is a folder, a hub id, or `tiny`, the one in the package. Of a hub id only the
small files come at once; shards come when a half asks for them. Nothing here loads torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from cogcache.errors import CheckpointError, MissingShardError, TruncatedShardError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md")
MAX_HEADER_BYTES = 100_000_000
"""Bound of a shard's header, as safetensors itself sets it."""
VOLATILE_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map")
"""Config keys that say nothing about what the weights compute."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its shard's header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def read_header(shard: Path) -> dict[str, TensorInfo]:
    """Read what a safetensors shard holds, without its tensors.

    Raises:
        MissingShardError: there is no such file.
        TruncatedShardError: the file is shorter than its header says, or has none.
    """
    hint = f"fetch {shard.name} anew"
    try:
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, shard.stat().st_size - 8):
                raise TruncatedShardError(f"{shard} has no readable safetensors header", hint)
            entries: dict[str, Any] = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        described = {name: _tensor_info(name, entry) for name, entry in entries.items()}
    except FileNotFoundError as error:
        raise MissingShardError(f"{shard} is missing", hint) from error
    except (OSError, ValueError) as error:
        raise TruncatedShardError(f"{shard} cannot be read: {error}", hint) from error
    except (AttributeError, LookupError, TypeError) as error:  # JSON, but not of this kind
        raise TruncatedShardError(f"{shard} has no readable safetensors header", hint) from error
    if (there := shard.stat().st_size) != 8 + length + end:
        problem = f"{shard} has {there:,} bytes where its header says {8 + length + end:,}"
        raise TruncatedShardError(problem, hint)
    return described


def _tensor_info(name: str, entry: Mapping[str, Any]) -> TensorInfo:
    start, end = entry["data_offsets"]
    return TensorInfo(name, entry["dtype"], tuple(entry["shape"]), end - start)


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
        if model == "tiny":
            checkpoint = cls(model, Path(__file__).parent / "tiny")
        elif Path(model).is_dir():
            checkpoint = cls(model, Path(model))
        else:
            checkpoint = cls(model, _fetch(model, revision, SMALL_FILES), revision, on_hub=True)
        if not (checkpoint.folder / "config.json").is_file():
            raise CheckpointError(
                f"{model} has no config.json", "give a model's folder or its id on the hub"
            )
        return checkpoint

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return _read_json(self.folder / "config.json")

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
            index = _read_json(self.folder / INDEX)
            shards = index.get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
                raise CheckpointError(f"{self.folder / INDEX} has no weight_map", "fetch it anew")
            return shards
        self.fetch([SINGLE])
        return dict.fromkeys(read_header(self.folder / SINGLE), SINGLE)

    def shards_of(self, names: Iterable[str]) -> list[str]:
        """Return the shards that hold any of `names`, sorted."""
        return sorted({self.weight_map[name] for name in names})

    def fetch(self, shards: Collection[str]) -> None:
        """See that `shards` are in the folder; download the absent ones of a hub id."""
        absent = [shard for shard in shards if not (self.folder / shard).is_file()]
        if absent and self.on_hub:
            # Of the same commit as the small files: a branch may have moved on in between.
            _fetch(self.model, self.folder.name, absent)
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

    def view(self, names: Collection[str], target: Path) -> None:
        """Make `target` look like a checkpoint that holds only `names`.

        Shards are linked, not copied; those without any of `names` are left out.
        """
        shards = self.shards_of(names)
        self.fetch(shards)
        for file in (*self.folder.glob("*.json"), *(self.folder / shard for shard in shards)):
            if file.name != INDEX:
                (target / file.name).symlink_to(file.resolve())
        if shards != [SINGLE]:
            weight_map = {name: self.weight_map[name] for name in sorted(names)}
            index = {"metadata": {}, "weight_map": weight_map}
            (target / INDEX).write_text(json.dumps(index))

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, as the index or the single shard says; 0 where it does not."""
        if (self.folder / INDEX).is_file():
            index = _read_json(self.folder / INDEX)
            return int((index.get("metadata") or {}).get("total_size", 0))
        return sum(info.num_bytes for info in read_header(self.folder / SINGLE).values())

    def small_files(self) -> list[Path]:
        """Return config, tokenizer and processor files: all but weights, sorted by name."""
        files = (path for pattern in SMALL_FILES for path in self.folder.glob(pattern))
        kept = (path for path in files if path.name not in (INDEX, "README.md"))
        return sorted(path for path in kept if not path.name.startswith("LICENSE"))

    def digest(self, names: Collection[str], digest_of: Callable[[Path], str]) -> str:
        """Return the SHA-256 that stands for the weights `names` and what is computed with them.

        Args:
            names: tensors of a half.
            digest_of: SHA-256 of a file; the caller remembers them, shards are large.
        """
        from cogcache.keys import digest

        described = self.tensors(names)
        config = {k: v for k, v in self.config.items() if k not in VOLATILE_KEYS}
        fields: Mapping[str, Any] = {
            "config": json.dumps(config, sort_keys=True),
            "tensors": [
                f"{info.name} {info.dtype} {info.shape}" for _, info in sorted(described.items())
            ],
            "shards": [self.shard_digest(shard, digest_of) for shard in self.shards_of(names)],
        }
        return digest(fields)

    def shard_digest(self, shard: str, digest_of: Callable[[Path], str]) -> str:
        """Return a shard's SHA-256: the hub's own, where its cache names the file by it."""
        blob = (self.folder / shard).resolve().name
        if self.on_hub and len(blob) == 64 and set(blob) <= set("0123456789abcdef"):
            return blob
        return digest_of(self.folder / shard)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "fetch it anew") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object", "fetch it anew")
    return content


def _fetch(model: str, revision: str | None, patterns: Collection[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hint = "give a folder, or a hub id such as THUDM/cogvlm2-llama3-caption, and check the network"
    try:
        folder = snapshot_download(model, revision=revision, allow_patterns=list(patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{model} cannot be fetched: {first_line}", hint) from error
    return Path(folder)
