"""The libraries that a half needs: seconds to load, which are told and booked as what they are."""

from __future__ import annotations

import sys
from typing import Literal

from cogcache.catalog import FileFacts
from cogcache.models import Family, recall
from cogcache.stages.runs.progress import logger
from cogcache.stages.runs.report import Timings


def load_libraries(command: str, timings: Timings) -> None:
    """Import torch and transformers, where that has not been done; the time is booked as import."""
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
    """Load the libraries where a half is to be identified anew: it has to be laid out for that."""
    if recall(family, half, memory) is None:
        load_libraries(command, timings)
