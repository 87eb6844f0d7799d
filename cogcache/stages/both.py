"""Runs the two stages one after the other, each as a process of its own.

A process that has ended is the only proof that its memory was given back.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType

from cogcache.settings import Limits, Settings
from cogcache.system import asking_to_end


@dataclass(frozen=True)
class Hours:
    """The time that two stages have together; it runs from when this is made."""

    most: float | None
    began_s: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float | None:
        """Hours that are left; None for any."""
        if self.most is None:
            return None
        return max(self.most - (time.monotonic() - self.began_s) / 3600, 0.0)

    @property
    def are_over(self) -> bool:
        """Whether nothing is left."""
        return self.left == 0.0


def second_limits(settings: Settings, hours: Hours) -> Limits:
    """Return the limits of stage two in a run of both: what is left of the time, clips in captions.

    A limit counts the clips of such a run; each of them is to get all its captions.
    """
    limits = settings.limits
    captions = len(settings.prompts) * settings.generation.n
    limit = None if limits.limit is None else limits.limit * captions
    return limits.model_copy(update={"max_hours": hours.left, "limit": limit})


def run_stage(arguments: Sequence[str]) -> int:
    """Run `cogcache ARGUMENTS` in a process of its own and return its exit status.

    SIGINT, SIGTERM and SIGHUP are handed on, so that the stage finishes what is in hand; the stage
    is in a session of its own, or a terminal would send it the signal a second time.

    Returns:
        What the stage ended with; 128 and the signal's number where a signal ended it, or was
        received meanwhile. A stage that was asked to stop has left its work in order, but what
        follows it must not start.
    """
    command = [sys.executable, "-m", "cogcache", *arguments]
    received: list[int] = []
    early: list[int] = []
    stage: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if stage is None:
            early.append(number)
        else:
            stage.send_signal(number)

    # Before the stage starts: a signal in between would end this process and leave that one.
    before = {number: signal.signal(number, hand_on) for number in asking_to_end()}
    try:
        stage = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
        for number in early:
            stage.send_signal(number)
        status = stage.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        return 128 + received[0]
    return 128 - status if status < 0 else status
