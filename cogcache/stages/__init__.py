"""The work: extract, caption, convert.

In: a cache and settings. Out: feature files, rows of the catalog, and a `RunReport`. `runs` opens
and ends a run, `clips` finds the work, `encoding` and `captioning` do it, `distributed` hands
it to workers on other devices or machines. `extract` and `caption` share only the cache.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
