"""Safetensors files of bounded size, each brought to the disk, read back and compared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cogcache.errors import CheckpointError
from cogcache.models.checkpoints.headers import read_header, read_tensor
from cogcache.units import GIB, MIB

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

FILE_BYTES = GIB
"""Most bytes of tensors in a file, but for tensors that are larger alone."""
PIECE_BYTES = 16 * MIB
Named = tuple[str, "Tensor"]


class TensorFiles:
    """Writes tensors into files of a folder.

    Args:
        folder: where.
        bar: advances by the bytes written.
        digests: gets the SHA-256 of each file under its name.
    """

    def __init__(self, folder: Path, bar: tqdm[Any], digests: dict[str, str]) -> None:
        self.folder, self.bar, self.digests = folder, bar, digests

    def write(self, group: str, tensors: Iterable[Named]) -> list[tuple[str, list[str]]]:
        """Write tensors into as many files as they need.

        Args:
            group: what the files' names begin with.
            tensors: names and tensors; no more of them than a file takes are held at a time.

        Returns:
            The files and the names in each.

        Raises:
            CheckpointError: the disk gives back other bytes than were written.
        """
        written = []
        for number, part in enumerate(_parts(tensors), start=1):
            file = f"{group}-{number:05}.safetensors"
            self._write(self.folder / file, part)
            written.append((file, list(part)))
        return written

    def _write(self, path: Path, part: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file

        save_file(part, path, metadata={"format": "pt"})
        path.chmod(self.folder.stat().st_mode & 0o666)  # it makes files for their owner alone
        sync_file(path)
        for name, tensor in part.items():
            if not _same_bytes(read_tensor(path, name), tensor):
                raise CheckpointError(f"{path} was not written as it should be", "check the disk")
            self.bar.update(tensor.nbytes)
        self.digests[path.name] = sha256_of(path)


def copy_tensors(source: Path, names: Collection[str], target: Path) -> str:
    """Copy some tensors of a safetensors file into another, a piece at a time.

    `TensorFiles` holds tensors in memory and begins a new file after a GiB; keys of features go by
    one file a shard.

    Returns:
        The new file's SHA-256.

    Raises:
        CheckpointError: the source is damaged, or the disk gives back other bytes.
    """
    read_header(source)
    digest = hashlib.sha256()
    with source.open("rb") as shard, target.open("wb") as file:
        length = int.from_bytes(shard.read(8), "little")
        header = json.loads(shard.read(length))
        ranges = sorted((*header[name]["data_offsets"], name) for name in names)
        for piece in _file_of(shard, 8 + length, header, ranges):
            digest.update(piece)
            file.write(piece)
    sync_file(target)
    if sha256_of(target) != digest.hexdigest():
        raise CheckpointError(f"{target} was not written as it should be", "check the disk")
    return digest.hexdigest()


def _file_of(
    shard: BinaryIO, start: int, header: Mapping[str, Any], ranges: Sequence[tuple[int, int, str]]
) -> Iterator[bytes]:
    """Yield a safetensors file: its header, then tensors, one behind the other."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for begin, end, name in ranges:
        entries[name] = {**header[name], "data_offsets": [at, at + end - begin]}
        at += end - begin
    told = json.dumps(entries).encode()
    told += b" " * (-len(told) % 8)
    yield len(told).to_bytes(8, "little") + told
    for begin, end, _ in ranges:
        shard.seek(start + begin)
        for offset in range(begin, end, PIECE_BYTES):
            yield shard.read(min(PIECE_BYTES, end - offset))


def sync_file(path: Path) -> None:
    """Bring a file to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parts(tensors: Iterable[Named]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if part and sum(each.nbytes for each in part.values()) + tensor.nbytes > FILE_BYTES:
            yield part
            part = {}
        part[name] = tensor.detach().cpu().contiguous()
    if part:
        yield part


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    import torch

    views = (each.reshape(-1).view(torch.uint8) for each in (one, other))
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*views)
