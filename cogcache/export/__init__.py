"""Captions out, as rows, subtitles or the folders that trainers read; and captions in.

In: a cache and a choice of captions. Out: files below one target, whole or absent; or, for an
import, rows of the catalog.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
