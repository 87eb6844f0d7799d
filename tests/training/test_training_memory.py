"""The plan of a training run and what it really took, each run a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from trained_caches import QUICK

from cogcache.catalog.catalog import Catalog

TOLERANCE = 0.1


def planned_and_measured(cache: Path, out: Path, **changes: object) -> tuple[int, int]:
    """Train by the command, and return what its report says of memory."""
    told = {**QUICK, "max_steps": 2, "samples": 0, **changes}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in told.items()]
    start = [sys.executable, "-m", "cogcache", "train", f"--cache={cache}", f"--out={out}"]
    subprocess.run([*start, "--model=tiny", "--captions-of=other", *options], check=True)
    with Catalog(cache / "catalog.sqlite") as catalog:
        run = catalog.runs.rows()[-1]
    return run["planned_peak_bytes"], run["measured_peak_bytes"]


def test_what_training_took_is_near_its_plan(cache, tmp_path):
    planned, measured = planned_and_measured(cache, tmp_path / "adapter", precision="bf16")
    assert planned == pytest.approx(measured, rel=TOLERANCE)
