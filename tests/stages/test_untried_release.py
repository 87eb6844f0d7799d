"""A stage that runs on a transformers that nobody tried says so, once, and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from videos import write_video

QUICK = ["--max-new-tokens=3", "--quantization=none", "--decode-workers=1", "--max-frames=2"]


@pytest.fixture
def installed(tmp_path) -> dict[str, str]:
    """An environment in which transformers is said to be of another version."""
    folder = tmp_path / "site" / "transformers-5.999.0.dist-info"
    folder.mkdir(parents=True)
    folder.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformers\nVersion: 5.999.0\n"
    )
    return {**os.environ, "PYTHONPATH": os.fspath(folder.parent)}


def run_stage(videos: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cogcache", "run", str(videos), "--cache", str(videos / "c")]
    return subprocess.run(
        [*command, *QUICK], env=environment, capture_output=True, text=True, check=False
    )


def test_each_stage_warns_once_and_does_its_work(tmp_path, installed):
    write_video(tmp_path / "videos.mp4", num_frames=4)
    ended = run_stage(tmp_path, installed)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("transformers 5.999.0 was never tried with cogcache") == 2
