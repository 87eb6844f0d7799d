"""The SQLite catalog: videos, clips, captions, failures and runs.

In: rows. Out: rows, searches (`catalog.search`), and the care of a cache: verify, rebuild, merge,
delete what is unused (`catalog.upkeep`). The catalog can be rebuilt from feature files, except for
its captions, which it alone holds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
