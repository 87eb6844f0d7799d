"""Stage two of cogcache on vLLM: a plugin with model classes, and the worker that uses them.

In: requests as lines of JSON on standard input, each with ids, positions and the name of a feature
file. Out: tokens, as lines of JSON on standard output. `protocol` in cogcache's own package
`generation/vllm/` is the other side. Importing this loads neither vLLM nor torch.
"""

from __future__ import annotations

from typing import Final

PROTOCOL: Final = 1
"""Raised when a message changes its meaning."""
VLLM: Final = "0.32"
"""The one minor version whose inner calls are used here."""


def register() -> None:
    """Make the model classes known; vLLM calls this in each of its processes."""
    from vllm import ModelRegistry

    from cogcache_vllm import int8, loader  # noqa: F401 - their import makes both known
    from cogcache_vllm.architectures import ARCHITECTURES

    known = ModelRegistry.get_supported_archs()
    for name, place in ARCHITECTURES.items():
        if name not in known:
            ModelRegistry.register_model(name, place)
