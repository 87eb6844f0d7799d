"""Keys and values of clips' video parts on the disk, so that a later prompt starts at once.

    DIR/ab/abcdef….safetensors      one video part, named by the digest of all it depends on
    DIR/quarantine/                 those whose bytes were not the sealed ones

Files are whole or absent, and proven at each reading. None is ever deleted. docs/format.md
specifies them. Imported where captions are made; it needs torch.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cogcache.errors import CacheError, CorruptFeaturesError, FeaturesError
from cogcache.generation.kv_cache import Prefix
from cogcache.keys import Field, Template, digest
from cogcache.store import Bits, hash_block, hashing, tensor_digest
from cogcache.system import Part, make_folder, remove_dead, seal_parts
from cogcache.units import format_bytes

logger = logging.getLogger(__name__)

FORMAT: Final = 1
_DTYPES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class KeptPrefixes:
    """A folder of video parts that were run through a language half.

    Args:
        folder: made if absent.
        depends_on: what all of them depend on: weights, quantisation, type, device.
        min_free_bytes: what has to stay free on the folder's disk; nothing is kept below it.

    Raises:
        CacheError: the folder cannot be made.
    """

    def __init__(
        self, folder: Path, depends_on: Mapping[str, Field], min_free_bytes: float = 0
    ) -> None:
        self.folder = folder.expanduser()
        self.depends_on = dict(depends_on)
        shared: dict[str, Field] = {**self.depends_on, "format": FORMAT}
        self._named = Template(shared, ("feature_key", "tokens"))
        self.min_free_bytes = min_free_bytes
        self.num_read = self.num_written = 0
        self._full = False
        self._thread = ThreadPoolExecutor(1, "prefixes")
        self._writing: Future[bool] | None = None
        try:
            make_folder(self.folder)
        except OSError as error:
            problem = f"video parts cannot be kept in {self.folder}: {error.strerror}"
            raise CacheError(problem, "name another folder with --keep-prefix") from error
        remove_dead(self.folder.glob("??"))

    def read(self, clip: str, tokens: str, device: torch.device | str = "cpu") -> Prefix | None:
        """Return what was kept of a clip; None where nothing was, or nothing sound.

        Args:
            clip: its feature key.
            tokens: digest of the tokens up to the end of the video.
            device: where to put it.
        """
        path, fields = self._place(clip, tokens)
        if not path.is_file():
            return None
        try:
            tensors = _read(path, fields)
        except CorruptFeaturesError as error:
            logger.warning("%s; it is made anew%s", error.problem, self._aside(path))
            return None
        except OSError as error:
            logger.warning("%s cannot be read, and is computed: %s", path, error)
            return None
        self.num_read += 1
        pairs = zip(tensors[::2], tensors[1::2], strict=True)
        return Prefix([(keys.to(device), values.to(device)) for keys, values in pairs])

    def keep(self, clip: str, tokens: str, prefix: Prefix) -> None:
        """Write a prefix in a thread; at most one prefix waits to be written."""
        self.wait()
        if not self._full:
            path, fields = self._place(clip, tokens)
            self._writing = self._thread.submit(self._write, path, fields, prefix)

    def wait(self) -> None:
        """Wait until all prefixes are written."""
        if self._writing is not None:
            self.num_written += self._writing.result()
            self._writing = None

    def lines(self) -> list[str]:
        """Return what a reader of the report wants to know."""
        if not self.num_read + self.num_written + self._full:
            return []
        full = "; its disk takes no more, others were not kept" if self._full else ""
        found = f"{self.num_read} read, {self.num_written} written"
        return [f"video parts in {self.folder}: {found}{full}"]

    def _place(self, clip: str, tokens: str) -> tuple[Path, dict[str, Field]]:
        own: dict[str, Field] = {"format": FORMAT, "feature_key": clip, "tokens": tokens}
        fields = {**self.depends_on, **own}
        name = self._named.digest(own)
        return self.folder / name[:2] / f"{name}.safetensors", fields

    def _write(self, path: Path, fields: Mapping[str, Field], prefix: Prefix) -> bool:
        """Seal one file; runs in the thread. A disk that will not take it ends no run."""
        try:
            tensors = [Bits.of(path.stem, tensor) for layer in prefix.layers for tensor in layer]
            if path.exists() or not self._has_room(sum(bits.array.nbytes for bits in tensors)):
                return False
            seal_parts(path, _parts(tensors, fields), lambda partial: _check(partial, fields))
        except FeaturesError:  # NaN: the caption will be of no use, and so would this be
            return False
        except (CacheError, OSError) as error:
            self._full = True
            logger.warning("no more video parts are kept in this run: %s", error)
            return False
        return True

    def _has_room(self, size_bytes: int) -> bool:
        free_bytes = shutil.disk_usage(self.folder).free
        self._full = free_bytes - size_bytes < self.min_free_bytes
        if self._full:
            least, free = format_bytes(self.min_free_bytes), format_bytes(free_bytes)
            logger.warning(
                "%s: %s are free; a video part takes %s and --min-free leaves %s, so none is kept",
                self.folder, free, format_bytes(size_bytes), least,
            )  # fmt: skip
        return not self._full

    def _aside(self, path: Path) -> str:
        """Move a damaged file away and say where it is; where that fails it stays."""
        names = chain([path.name], (f"{path.stem}-{number}{path.suffix}" for number in count(2)))
        places = map((self.folder / "quarantine").joinpath, names)
        target = next(place for place in places if not place.exists())
        try:
            make_folder(target.parent)
            path.rename(target)
        except OSError as error:
            return f", but cannot be moved to {target}: {error}"
        return f", and moved to {target}"


def _names(index: int) -> str:
    layer, kind = divmod(index, 2)
    return f"{layer:03}.{'values' if kind else 'keys'}"


def _digest(tensors: Iterable[Bits], fields: Mapping[str, Field]) -> str:
    with hashing() as pool:
        hashes = [
            (bits, [pool.submit(hash_block, block) for _, block in bits.blocks()])
            for bits in tensors
        ]
        found = [tensor_digest(bits, blocks) for bits, blocks in hashes]
    return digest({**fields, "tensors": found})


def _parts(tensors: list[Bits], fields: Mapping[str, Field]) -> Iterator[Part]:
    """Yield a safetensors file piece by piece: its library would copy all of it first."""
    metadata = {"fields": json.dumps(fields, sort_keys=True), "sha256": _digest(tensors, fields)}
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for index, bits in enumerate(tensors):
        offsets = [start, start := start + bits.array.nbytes]
        shape = list(bits.array.shape)
        header[_names(index)] = {
            "dtype": _DTYPES[bits.dtype], "shape": shape, "data_offsets": offsets,
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for bits in tensors:
        yield bits.array.data


def _check(path: Path, fields: Mapping[str, Field]) -> None:
    _read(path, fields)


def _read(path: Path, fields: Mapping[str, Field]) -> list[Tensor]:
    """Return the tensors of a file, layer by layer, proven to be the sealed ones.

    Raises:
        CorruptFeaturesError: they are not.
        OSError: the disk or the system will not let it be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            sealed = (file.metadata() or {}).get("sha256")
            # A copy: a mapped file could change, or be cut off, after it was proven.
            count = len(file.keys())
            tensors = [file.get_tensor(_names(index)).clone() for index in range(count)]
        found = _digest([Bits.of(path.stem, tensor) for tensor in tensors], fields)
    except (SafetensorError, FeaturesError, TypeError) as error:
        raise CorruptFeaturesError(f"{path} is damaged: {error}") from error
    if sealed != found:
        raise CorruptFeaturesError(f"{path} is damaged: its SHA-256 is not the sealed one")
    return tensors
