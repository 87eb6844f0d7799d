"""A cache of `tiny` with captions to learn from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cogcache.catalog.catalog import Catalog
from cogcache.export.importing import import_captions

PROMPT = "Please describe this video in detail."
NUM_CLIPS = 8


def import_set(cache: Path, name: str, words: Callable[[str], str], **more: Any) -> None:
    with Catalog(cache / "catalog.sqlite") as catalog:
        clips = catalog.clips.rows()
    rows = [
        {"feature_key": clip["feature_key"], "prompt_name": "detail", "prompt": PROMPT,
         "caption": words(Path(clip["video"]).name)}
        for clip in clips
    ]  # fmt: skip
    file = cache.parent / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    import_captions(file, cache / "catalog.sqlite", name, **more)
