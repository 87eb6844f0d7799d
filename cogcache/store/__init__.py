"""Feature files, and who works on which of them.

In: the named tensors of one clip and the fields of its key. Out: the same tensors, bit for bit,
or a `CorruptFeaturesError`. A feature file is written once and is whole or absent. Claims tell
two runs on one cache apart; they are files too.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
