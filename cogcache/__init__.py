"""Caption videos in two stages: cache the vision half's features once, caption from them for ever.

The names below are the public ones. Each is imported when it is first used, so that
``import cogcache`` does not load torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cogcache.catalog.catalog import Catalog
    from cogcache.errors import CogcacheError
    from cogcache.models.halves.load import load_half
    from cogcache.models.registry import get_family
    from cogcache.settings.settings import Settings, load_settings
    from cogcache.stages.caption import caption
    from cogcache.stages.extract import extract
    from cogcache.store.store import FeatureStore

    __version__: str

__all__ = [
    "Catalog",
    "CogcacheError",
    "FeatureStore",
    "Settings",
    "__version__",
    "caption",
    "extract",
    "get_family",
    "load_half",
    "load_settings",
]

_HOMES = {
    "Catalog": "cogcache.catalog",
    "CogcacheError": "cogcache.errors",
    "FeatureStore": "cogcache.store",
    "Settings": "cogcache.settings.settings",
    "caption": "cogcache.caption",
    "extract": "cogcache.extract",
    "get_family": "cogcache.models.registry",
    "load_half": "cogcache.models.halves.load",
    "load_settings": "cogcache.settings.settings",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("cogcache")
    if name not in _HOMES:
        raise AttributeError(f"module 'cogcache' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``cogcache.extract`` and ``cogcache.caption`` the functions.

    Importing a submodule sets it as an attribute of its package: whether ``cogcache.extract``
    is the function or the module would then depend on what was imported before.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
