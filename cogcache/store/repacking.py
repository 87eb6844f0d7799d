"""Feature files in another compression: the same tensors under the same digest."""

from __future__ import annotations

from pathlib import Path

from cogcache.store import reader, writer
from cogcache.store.format import Bits
from cogcache.store.store import FeatureStore
from cogcache.store.writer import Compression


def repack(store: FeatureStore, key: str, compression: Compression) -> int | None:
    """Seal the features of ``key`` once more in another compression.

    The file is replaced in one step by one with the same digest; until then the old one stays, and
    whoever reads it goes on reading it.

    Returns:
        The bytes that the file takes now; None where it is packed so already.

    Raises:
        CacheError: the cache holds none of this key, or the disk is full.
        CorruptFeaturesError: the file is damaged; it is left as it is.
    """
    with store.opened(key) as path:
        if writer.packings(path) <= {compression}:
            return None
        stored = reader.read(path, key)
        bits = {name: Bits.of(name, tensor) for name, tensor in stored.tensors.items()}
        content = writer.encode(key, bits, stored.attributes, stored.thumbnail, compression)
        # What hardly takes any room once compressed lies there plain.
        if content == path.read_bytes():
            return None

        def check(partial: Path) -> None:
            reader.check(partial, key, bits)
            reader.check_same_seal(path, partial)

        store.put(key, content, check)
    return store.size_bytes(key)


def compression_of(store: FeatureStore, key: str) -> Compression:
    """Return how the features of ``key`` are packed.

    Raises:
        CacheError: the cache holds none of this key.
    """
    with store.opened(key) as path:
        packings = writer.packings(path) - {"none"}
    return next(iter(sorted(packings)), "none")
