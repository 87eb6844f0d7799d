"""Made-up clips whose truth is known, and checks that this machine can run cogcache.

In: nothing. Out: clips with their right answers, the demonstration, and `doctor`'s findings.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
