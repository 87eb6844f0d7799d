"""Runs the two stages one after the other, each as a process of its own.

A process that has ended is the only proof that its memory was given back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType


def run_stage(arguments: Sequence[str]) -> int:
    """Run `cogcache ARGUMENTS` in a process of its own and return its exit status.

    SIGINT and SIGTERM are handed on, so that the stage finishes what is in hand; the stage is
    in a session of its own, or a terminal would send it the signal a second time.
    """
    command = [sys.executable, "-m", "cogcache", *arguments]
    received: list[int] = []
    stage = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)

    def hand_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        os.kill(stage.pid, number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = stage.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # A stage that was asked to stop has left its work in order; what follows it must not start.
    return 128 + received[0] if received else status
