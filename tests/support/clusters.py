"""Ray clusters of several nodes on this machine; workers import what lies beside the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks import workers
from benchmarks.workers import ROOT
from cogcache.stages.distributed.ray_workers import QUIET


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """Start a cluster; its workers import what lies here, and it ends with the block."""
    os.environ.update(QUIET)  # read when Ray is imported, which is in the block
    paths = [str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
        with workers.cluster_of(nodes) as cluster:
            yield cluster
