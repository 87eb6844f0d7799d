"""`python -m cogcache_vllm`: the worker that cogcache starts."""

from __future__ import annotations

from typing import Any

from cogcache_vllm.worker import Engine, main


def _engine(asked: dict[str, Any]) -> Engine:
    from cogcache_vllm.engine import VllmEngine

    return VllmEngine(asked)


if __name__ == "__main__":
    main(_engine)
