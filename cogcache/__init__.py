"""Caption videos in two stages: encode each video once, then caption it with any prompt.

The names below are the public ones. Each is imported when it is first used, so that
``import cogcache`` does not load torch.
"""

from __future__ import annotations

import lazy_loader

_attribute, _, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*_names, "__version__"])


def __getattr__(name: str) -> object:
    if name == "__version__":
        from cogcache.system.distribution import our_version

        return our_version()
    return _attribute(name)


def __dir__() -> list[str]:
    return __all__
