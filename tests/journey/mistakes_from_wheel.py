"""Types mistakes one after the other, as a program of the environment with the wheel.

Started with the wheel's Python in a folder of its own; the mistakes come as JSON on standard input,
`[typed, modules that are not there]`, and what was said goes to standard output. One process types
them all: each of its own would spend a second on imports.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from click.testing import CliRunner

import cogcache
from cogcache.cli import main
from cogcache.selftest.shapes import draw_scene, write_clip

HOW = {"model": "tiny", "quantization": "none", "max_new_tokens": 2, "retry": False,
       "decode_workers": 1}  # fmt: skip


def make_things() -> None:
    """Make a captioned cache of one video, one whose video has moved, and easy mistakes."""
    write_clip(draw_scene(np.random.default_rng(0), 10), Path("a.mp4"))
    Path("list.txt").write_text("a.mp4\n")
    Path("notes.vtt").write_text("WEBVTT\n")
    Path("sample.toml").write_text("[sample]\nmax_frames = 3\n")
    Path("typo.toml").write_text("[sampling]\nmax_frame = 3\n")
    settings = cogcache.load_settings(None, HOW)
    Path("old").mkdir()
    shutil.copy("a.mp4", "old/b.mp4")
    cogcache.extract("old", "moved", settings)
    cogcache.caption("moved", settings)
    Path("elsewhere").mkdir()
    Path("old/b.mp4").rename("elsewhere/b.mp4")
    cogcache.extract("a.mp4", "cache", settings)
    cogcache.caption("cache", settings)
    cogcache.extract("a.mp4", "empty", settings)
    cogcache.extract("a.mp4", "clipless", settings)
    with cogcache.Catalog(Path("clipless/catalog.sqlite")) as catalog:
        catalog.clips.remove([row["feature_key"] for row in catalog.clips.rows()])


def typed(line: str, missing: list[str]) -> dict[str, object]:
    """Type a line while some modules are not installed."""
    runner = CliRunner(env={"COLUMNS": "80"})
    hidden = dict.fromkeys(missing)
    with (
        mock.patch.dict(sys.modules, hidden),
        mock.patch("importlib.util.find_spec", _without(missing)),
        mock.patch("cogcache.cli.web.find_spec", _without(missing)),
        mock.patch("cogcache.catalog.search.embedding.find_spec", _without(missing)),
    ):
        done = runner.invoke(main, line.split())
    return {"typed": line, "status": done.exit_code, "said": done.output}


def _without(missing: list[str]):  # type: ignore[no-untyped-def]
    from importlib.util import find_spec

    return lambda name, *more: None if name in missing else find_spec(name, *more)


if __name__ == "__main__":
    make_things()
    found = [typed(*each) for each in json.load(sys.stdin)]
    json.dump({"package": cogcache.__file__, "found": found}, sys.stdout)
