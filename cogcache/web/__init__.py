"""Pages over one cache: clips, captions beside the pictures, failures, runs and figures.

In: a cache. Out: a server on this machine, or pages written to a folder. Needs the extra `web`.
Pages load nothing from the internet. The server does not encrypt: on a shared network, put an
HTTPS proxy in front of it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
