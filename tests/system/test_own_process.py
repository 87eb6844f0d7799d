from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_process_jobs import Untold, end_by_signal, fail, fail_in_our_way, pid_of

from cogcache.errors import CogcacheError, ConfigError
from cogcache.system.processes import in_own_process


def test_the_call_runs_in_another_process_which_ends():
    pid, answer = in_own_process(pid_of, 20)
    assert answer == 21
    assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_our_errors_come_back_as_they_were():
    with pytest.raises(ConfigError, match="not so") as caught:
        in_own_process(fail_in_our_way, "not so")
    assert caught.value.hint == "but so"


def test_other_errors_come_back_with_their_traceback():
    with pytest.raises(ZeroDivisionError) as caught:
        in_own_process(fail, None)
    assert "in fail" in caught.value.__notes__[0]


def test_an_error_that_cannot_be_sent_comes_as_its_text():
    with pytest.raises(RuntimeError, match="Untold"):
        in_own_process(fail, Untold)


def test_a_process_that_is_killed_is_told():
    with pytest.raises(CogcacheError, match="was killed before it was done"):
        in_own_process(end_by_signal, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_process_ends_with_its_parent(tmp_path, number):
    code = (
        "from cogcache.system.processes import in_own_process\n"
        "from own_process_jobs import sleep_after\n"
        f"if __name__ == '__main__':\n    in_own_process(sleep_after, {str(tmp_path / 'pid')!r})"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support"), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child = int((tmp_path / "pid").read_text())
    parent.send_signal(number)
    parent.wait()
    for _ in range(500):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it outlived its parent")
