"""Does it fit: bytes of weights, activations and caches, before anything is loaded.

In: settings and the headers of a checkpoint. Out: a plan (batch, offload, precision) with its peak
memory, or a half that is loaded to that plan.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
