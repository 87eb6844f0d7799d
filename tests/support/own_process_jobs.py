"""What the tests of `own_process` run in one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from cogcache.errors import ConfigError


class Untold(Exception):
    def __reduce__(self):
        raise TypeError("it stays where it is")


def pid_of(number: int) -> tuple[int, int]:
    return os.getpid(), number + 1


def fail(error: Callable[[], Exception] | None) -> float:
    if error is not None:
        raise error()
    return 1 / 0


def fail_in_our_way(problem: str) -> None:
    raise ConfigError(problem, "but so")


def end_by_signal(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def sleep_after(path: str) -> None:
    Path(f"{path}.partial").write_text(str(os.getpid()))
    Path(f"{path}.partial").rename(path)
    time.sleep(120)
