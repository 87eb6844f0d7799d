"""Scores: which captions do not fit their clips, and which clips are not worth a caption.

In: captions, cached features, and for some scores the language half. Out: numbers with what they
rest on. A score says which ones to look at; none of them deletes anything.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
