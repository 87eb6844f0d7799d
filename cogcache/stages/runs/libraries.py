"""Imports torch and transformers: that takes seconds, which a run announces and reports."""

from __future__ import annotations

import sys
from typing import Literal

from cogcache.catalog import FileFacts
from cogcache.models import Family, recall
from cogcache.settings import Settings
from cogcache.stages.runs.progress import logger
from cogcache.stages.runs.report import Timings


def load_libraries(command: str, timings: Timings) -> None:
    """Import torch and transformers, once; the report shows the time as import."""
    if "transformers.modeling_utils" in sys.modules:
        return
    logger.info("%s: loading libraries", command)
    with timings.time("import"):
        import torch  # noqa: F401
        import transformers.modeling_utils  # noqa: F401


def ready_to_identify(
    command: str,
    family: Family,
    half: Literal["vision", "language"],
    memory: FileFacts,
    timings: Timings,
) -> None:
    """Import the libraries if the digest of a half is not known yet: computing it needs them."""
    if recall(family, half, memory) is None:
        load_libraries(command, timings)


def ready_to_scale(command: str, settings: Settings, timings: Timings) -> None:
    """Import the libraries if frames have limits of pixels: a processor is asked what they mean."""
    if settings.sampling.pixels is not None:
        load_libraries(command, timings)
