"""Commands that are killed and typed again end as if nothing had happened.

The long form, of every command that writes, is `make torture`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.commands import COMMANDS
from benchmarks.torture_commands import Torture

SHORT = (pytest.param("gc", marks=pytest.mark.slow), "merge", "export txt")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SHORT)
def test_a_command_that_is_killed_and_typed_again_leaves_what_one_run_leaves(name, tmp_path):
    # In a process of its own: children of one that has threads, as tests leave them, may crash.
    command = [sys.executable, "-m", "benchmarks.torture_commands", name, "--kills", "1"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_writes_can_be_killed_anywhere(name, tmp_path):
    Torture(name, tmp_path / "work", tmp_path).run(10)
