"""Writes the table in docs/export.md: what the video readers of three trainers see of a clip.

    python -m benchmarks.readers

Of each kind of video in the tests' corpus the clip from 1.0 to 2.6 s is exported and read again.
Told is the largest mean difference of a frame to the one that was captioned, of 255, and what
becomes of the whole video. `tests/export/test_clip_files.py` holds the bounds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from cogcache.export.clip_files import reason_to_encode
from cogcache.export.trainer_folders import DECORD
from cogcache.video.frame_index import index_frames

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from kinds import CONTAINERS, SPECIAL
from readers import READERS, differences

SPAN = (1.0, 2.6)


def row(name: str, folder: Path) -> str:
    """Return the row of one kind of video."""
    source = folder / name
    {**CONTAINERS, **SPECIAL}[name](source)
    found = differences(source, folder / "clip.mp4", *SPAN)
    reason = reason_to_encode(index_frames(source), DECORD)
    figures = " | ".join(f"{found[reader]:.1f}" for reader in READERS)
    told = f"encoded: {reason}" if reason and source.suffix == ".mp4" else "encoded"
    return f"| {name} | {figures} | {told if reason else 'copied'} |"


def main() -> None:
    """Print the table."""
    print(f"| video | {' | '.join(READERS)} | whole |")
    print("| --- " * (len(READERS) + 2) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name in (*CONTAINERS, *SPECIAL):
            print(row(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
