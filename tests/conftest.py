from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# These have to stand before torch and huggingface_hub are imported; programs that tests start
# inherit them. Test processes run side by side: each takes one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may reach for the net; those of downloads serve a hub of their own on loopback.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a text into a TOML file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "my.toml"
        path.write_text(text)
        return path

    return write
