"""Safetensors files of bounded size, each brought to the disk, read back and compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogcache.errors import CheckpointError
from cogcache.models.checkpoints.headers import read_tensor
from cogcache.units import GIB

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

FILE_BYTES = GIB
"""Most bytes of tensors in a file, but for tensors that are larger alone."""
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
