"""Groups vectors that are near-duplicates; one member of each cluster is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cogcache.errors import ConfigError
from cogcache.system import extra_hint

_NEIGHBOURS: Final = 32
"""Nearest neighbours compared for each vector; larger clusters are joined through them."""
_EXACT: Final = 5_000
"""Up to this many vectors, all pairs are compared; above, usearch finds nearest neighbours."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Vectors that are near-duplicates of one another, by number; the first is the one kept."""

    members: list[int]
    similarity: Mapping[int, float]
    """By member other than the first: the cosine to it."""

    @property
    def kept(self) -> int:
        """The member that is kept."""
        return self.members[0]


def clusters(vectors: npt.NDArray[np.float32], threshold: float) -> list[Cluster]:
    """Return the clusters of two or more vectors whose cosine is `threshold` or more.

    A cluster grows around the member that is kept: all others are near to that one, so that no
    chain of small steps joins what differs.

    Args:
        vectors: float32 [N, D], in the order in which they are preferred; a zero vector has no
            near-duplicate.
        threshold: least cosine.

    Raises:
        ConfigError: there are many vectors, and usearch is not installed.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    near = _all_pairs(unit, threshold) if len(unit) <= _EXACT else _by_graph(unit, threshold)
    taken: set[int] = set()
    found = []
    for number in range(len(unit)):
        others = {n: value for n, value in near[number].items() if n > number and n not in taken}
        if number not in taken and others:
            taken |= {number, *others}
            found.append(Cluster([number, *sorted(others)], others))
    return found


def _all_pairs(
    unit: npt.NDArray[np.float32], threshold: float, rows: int = 512
) -> defaultdict[int, dict[int, float]]:
    near: defaultdict[int, dict[int, float]] = defaultdict(dict)
    for first in range(0, len(unit), rows):
        cosines = unit[first : first + rows] @ unit.T
        for i, j in zip(*np.nonzero(cosines >= threshold), strict=True):
            near[first + int(i)][int(j)] = float(cosines[i, j])
    return near


def _by_graph(
    unit: npt.NDArray[np.float32], threshold: float
) -> defaultdict[int, dict[int, float]]:
    try:
        from usearch.index import Index
    except ImportError as error:
        problem = f"near-duplicates among {len(unit)} need usearch"
        raise ConfigError(problem, extra_hint("semantic")) from error
    index: Any = Index(ndim=unit.shape[1], metric="cos", dtype="f32")
    index.add(np.arange(len(unit), dtype=np.uint64), unit)
    near: defaultdict[int, dict[int, float]] = defaultdict(dict)
    matches = index.search(unit, _NEIGHBOURS)
    for number in range(len(unit)):
        for key, distance in zip(matches[number].keys, matches[number].distances, strict=True):
            if 1 - float(distance) >= threshold:
                near[number][int(key)] = near[int(key)][number] = 1 - float(distance)
    return near
