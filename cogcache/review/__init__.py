"""What people do with captions: edit, accept, reject, tag, and take it back.

In: rows of the catalog, and what is to become of them. Out: versions in the catalog, each with its
time and author. Nothing is overwritten: what a model wrote stays, and an edited caption stands in a
set beside it, `reviewed` by default.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
