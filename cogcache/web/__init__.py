"""Pages over one cache: clips, captions beside the pictures, failures, runs and figures.

In: a cache. Out: a server on this machine, or pages written to a folder. Needs the extra `web`.
Nothing is fetched from the net. Not covered: encryption; put a proxy that speaks HTTPS before it
on a network that others use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
