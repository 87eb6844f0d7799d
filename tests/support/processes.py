"""What processes the tests have started."""

from __future__ import annotations

import psutil


def child_processes() -> list[psutil.Process]:
    """Return the processes that this one has, without the tracker that Python itself keeps."""
    children = psutil.Process().children(recursive=True)
    return [each for each in children if "resource_tracker" not in " ".join(each.cmdline())]
