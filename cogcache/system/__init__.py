"""The machine: files written whole, signals, memory, processes, devices, object stores.

In: paths, bytes, functions to run. Out: files that are whole or absent, measured memory, errors
that say which part of the machine is at fault. Nothing here knows what a video or a caption is.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
