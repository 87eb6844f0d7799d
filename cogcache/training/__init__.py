"""The language half learns from cached features: no frame is decoded, no vision weight is loaded.

In: captions of the catalog and the feature files of their clips. Out: an adapter (LoRA) or a
checkpoint. `stages.train` and `stages.distill` begin, report and end such a run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
