"""What a half is, for keys: its family and the digest of its weights, remembered between runs.

Finding the halves of a checkpoint needs torch and a digest reads gigabytes, so what was found
is remembered until a file of the checkpoint changes. A run that has nothing to do then never
loads torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from cogcache.keys import digest
from cogcache.models.checkpoints.checkpoint import INDEX, Checkpoint
from cogcache.models.family import Family
from cogcache.models.halves.partition import Half

EPOCH = 1
"""Raised when the way halves are found or digested changes."""


class DigestMemory(Protocol):
    """What identities are remembered in; the catalog's ``files`` are one."""

    def recall(self, name: str) -> Mapping[str, Any] | None:
        """Return what was remembered under a name."""

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep a value under a name."""

    def digest_of(self, path: Path) -> str:
        """Return the SHA-256 of a file, remembered until the file changes."""


@dataclass(frozen=True, slots=True)
class HalfIdentity:
    """One half of one checkpoint, as keys know it."""

    family: str
    digest: str
    """SHA-256 standing for the half's weights and the config."""
    num_bytes: int
    """Bytes of its tensors in the checkpoint."""
    num_parameters: int
    whole_bytes: int
    """Bytes of the whole checkpoint, as its index says; 0 where it does not."""


def identify(family: Family, half: Half, memory: DigestMemory) -> HalfIdentity:
    """Return a half's identity, from memory where its checkpoint has not changed."""
    if known := recall(family, half, memory):
        return known
    identity, shards = _find(family, half, memory)
    value = {"identity": asdict(identity), "shards": _stats(family.checkpoint, shards)}
    memory.remember(_name(family, half, memory), value)
    return identity


def recall(family: Family, half: Half, memory: DigestMemory) -> HalfIdentity | None:
    """Return a half's identity if it is remembered; nothing is read or downloaded for it."""
    found = memory.recall(_name(family, half, memory))
    # The half's own shards alone: those of the other may change, come and go.
    if found is None or found["shards"] != _stats(family.checkpoint, found["shards"]):
        return None
    return HalfIdentity(**found["identity"])


def _find(family: Family, half: Half, memory: DigestMemory) -> tuple[HalfIdentity, list[str]]:
    from cogcache.models.halves.load import WholeModel

    checkpoint = family.checkpoint
    names = WholeModel.of(checkpoint, **family.partition_settings()).partition.names(half)
    described = checkpoint.tensors(names)
    identity = HalfIdentity(
        family.name,
        checkpoint.digest(names, memory.digest_of),
        sum(info.num_bytes for info in described.values()),
        sum(info.num_parameters for info in described.values()),
        checkpoint.total_bytes,
    )
    return identity, checkpoint.files_of(names)


def _stats(checkpoint: Checkpoint, shards: Iterable[str]) -> dict[str, list[int]]:
    """Size, time and inode of those shards that are there."""
    paths = {shard: checkpoint.folder / shard for shard in shards}
    found = {shard: path.stat() for shard, path in paths.items() if path.exists()}
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in found.items()}


def _name(family: Family, half: Half, memory: DigestMemory) -> str:
    checkpoint = family.checkpoint
    index = checkpoint.folder / INDEX
    small_files = [*checkpoint.small_files(), *([index] if index.is_file() else [])]
    fields: Mapping[str, Any] = {
        "epoch": EPOCH,
        "family": family.name,
        "cache_point": family.cache_point,
        "transformers": version("transformers"),
        "folder": str(checkpoint.folder.resolve()),
        "small_files": {path.name: memory.digest_of(path) for path in small_files},
    }
    return f"identity {half} {digest(fields)}"
