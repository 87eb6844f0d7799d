"""What people do with captions: edit, accept, reject, tag, and undo.

In: rows of the catalog, and a decision. Out: versions in the catalog, each with time and author.
Nothing is overwritten: the model's caption stays. An edited caption is kept beside it in a set, by
default `reviewed`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
