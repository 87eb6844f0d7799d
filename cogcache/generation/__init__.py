"""From cached features and prompts to tokens.

In: `Request`s that a family has laid out, and a language half. Out: tokens and texts, decoded in
continuous batches with shared prefixes, and flags for captions that look wrong.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
