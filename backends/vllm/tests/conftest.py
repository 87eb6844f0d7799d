"""What the tests with vLLM itself share: `COGCACHE_VLLM_PYTHON` names its environment's Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from vllm_caches import PYTHON, Kept


def pytest_collection_modifyitems(items):
    here = [item for item in items if "backends/vllm/tests" in str(item.path)]
    for item in here:
        item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.timeout(1200))
        item.add_marker(pytest.mark.skipif(not PYTHON, reason="COGCACHE_VLLM_PYTHON is not set"))


@pytest.fixture(scope="session")
def kept(tmp_path_factory) -> Iterator[Callable[[str], Kept]]:
    made: dict[str, Kept] = {}

    def of(name: str) -> Kept:
        if name not in made:
            made[name] = Kept(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of
