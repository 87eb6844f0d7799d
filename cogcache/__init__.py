"""Caption videos in two stages: encode each video once, then caption it with any prompt.

The names below are the public ones. Each is imported when it is first used, so that
``import cogcache`` does not load torch.
"""

from __future__ import annotations

import lazy_loader

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*__all__, "__version__"])


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("cogcache")
    return _attribute(name)
