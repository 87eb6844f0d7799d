"""A name for this machine that no other machine on a shared folder has."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path
from typing import Final

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_SPACE: Final = Path("/proc/self/ns/pid")


@cache
def machine() -> str:
    """Return a name, without dots, of this machine, its start, and its name space of processes.

    Two processes whose machines have the same name can ask the system about each other.
    """
    # Machines made from one image share their host name, and containers of one machine its boot.
    boot = _BOOT.read_text()[:8] if _BOOT.exists() else ""
    space = str(_SPACE.stat().st_ino) if _SPACE.exists() else ""
    parts = (re.sub(r"[^A-Za-z0-9-]", "_", platform.node()), boot, space)
    return "-".join(part for part in parts if part)
