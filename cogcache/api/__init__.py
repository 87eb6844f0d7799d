"""A front for notebooks and programs: one cache, and what is done with it, in a few calls.

In: paths, prompts, settings by name. Out: rows, features as tensors. Each stage runs in a process
of its own, which gives back all of its memory when it ends.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
