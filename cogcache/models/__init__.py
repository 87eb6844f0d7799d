"""Families of models, and their two halves.

In: a checkpoint (a folder, a hub id or `tiny`). Out: its `Family` (how frames and prompts become
inputs), and a loaded vision or language half that holds no tensor of the other. `checkpoints` reads
files, `quantization` makes and proves 4 and 8 bits, `halves` splits, loads and offloads;
`cogvlm2` and `derived` are the families.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
