"""Ray clusters of several nodes on this machine, as small as they can be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cogcache.crew_ray import QUIET

ROOT = Path(__file__).parent.parent
SMALL = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 << 20}


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """Start a cluster; its workers import what lies here, and it ends with the block."""
    os.environ.update(QUIET)  # read when Ray is imported, which is here
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**SMALL)
        yield cluster
    finally:
        cluster.shutdown()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
