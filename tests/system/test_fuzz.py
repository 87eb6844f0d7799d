"""A few seconds of `make fuzz`: each kind of sound file, and requests, changed at random."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fuzz import changed, options_of

ROOT = Path(__file__).parents[2]
KINDS = ("features", "catalogs", "rows", "imports", "headers", "requests")


@pytest.mark.parametrize("kinds", [KINDS[:3], KINDS[3:]], ids="-".join)
def test_what_is_changed_at_random_is_refused_or_is_as_it_was(kinds):
    words = ["--rounds", "1", "--changes", "24", "--seed", "20261130", "--kinds", *kinds]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in kinds:
        count = 6 if kind in ("catalogs", "rows") else 24
        assert f"{count} {kind}" in done.stdout


def test_changes_are_the_same_for_the_same_seed():
    sound = bytes(range(256)) * 8
    some = [changed(sound, random.Random(7)) for _ in range(2)]
    assert some[0] == some[1] != sound
    assert options_of(["--rounds", "3"]).kinds == list(KINDS)
