"""Scores that find captions which do not fit their clips, and clips not worth a caption.

In: captions, cached features, and for some scores the language half. Out: numbers and the reasons
for them. A score tells you which captions to check; it deletes nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
