"""From a video file to frames.

In: a path, a span of time and a sampling rule. Out: `ClipFrames` (uint8, [frames, height, width,
3]) with the time of each frame, or a `VideoError` with a reason. Decoding runs in worker
processes (`video.workers`), so that a broken file can crash or hang without harm.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
