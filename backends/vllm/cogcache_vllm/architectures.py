"""The names that `config.json` of a view gives, and where the classes are."""

from __future__ import annotations

from typing import Final

ARCHITECTURES: Final = {
    name: f"cogcache_vllm.models:{name}"
    for name in ("CogcacheLlama", "CogcacheQwen2", "CogcacheQwen3")
}
