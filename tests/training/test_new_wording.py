"""What `train` is for: captions of clips that it never saw come in the words that it was shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from benchmarks.train_tiny import OPTIONS, SENTENCE, reworded
from cogcache.catalog import Catalog, Selection
from cogcache.export.importing import import_captions
from cogcache.selftest.shapes import QUESTIONS, draw_scene, write_clip
from cogcache.settings import load_settings
from cogcache.stages import caption, extract, train

NEW = re.compile(r"\w+ \w+ \w+ on a \w+ background moves? .* (slowly|quickly)\.")
QUESTION = QUESTIONS["detail"][0]
TOLD = {"model": "tiny", "device": "cpu", "quantization": "none", "decode_workers": 1}
CLIPS, LEARNT, STEPS, SEED = 24, 16, 25, 7_000_000


def learnt_from(folder: Path, seed: int) -> Path:
    """Return a cache of made-up clips, of which the first are described in other words."""
    videos, cache = folder / "videos", folder / "cache"
    videos.mkdir()
    scenes = [draw_scene(np.random.default_rng(seed + n)) for n in range(CLIPS)]
    names = [str(videos / f"{n:04}.mp4") for n in range(CLIPS)]
    for name, scene in zip(names, scenes, strict=True):
        write_clip(scene, Path(name))
    extract([str(videos)], cache, load_settings(None, TOLD))
    asked = {"prompt_name": "detail", "prompt": QUESTION}
    rows = [
        {"video": name, "caption": reworded(scene.answer("detail")), **asked}
        for name, scene in zip(names[:LEARNT], scenes, strict=False)
    ]
    (folder / "new.jsonl").write_text("\n".join(map(json.dumps, rows)))
    import_captions(folder / "new.jsonl", cache / "catalog.sqlite", "new")
    return cache


def said_of(cache: Path, videos: list[str], adapter: str) -> list[str]:
    told = {**TOLD, "prompts": {"detail": QUESTION}, "adapter": adapter}
    caption(cache, load_settings(None, told), videos=videos)
    with Catalog(cache / "catalog.sqlite") as catalog:
        rows = catalog.captions.rows(prompt_name="detail")
    by = {row["video"]: row["caption"] for row in rows if (row["model"] != "tiny") == bool(adapter)}
    return [by[video] for video in videos]


def test_unseen_clips_are_described_in_the_words_that_were_learnt(tmp_path):
    cache, adapter = learnt_from(tmp_path, SEED), tmp_path / "adapter"
    settings = load_settings(None, {**OPTIONS, "max_steps": STEPS, "tokens_per_batch": 1024})
    train(cache, adapter, settings, Selection(models=("new",)))
    unseen = [str(tmp_path / "videos" / f"{n:04}.mp4") for n in range(LEARNT, CLIPS)]
    before, after = (said_of(cache, unseen, each) for each in ("", str(adapter)))
    assert all(SENTENCE.fullmatch(text) for text in before)
    # All eight here, and six to eight with five other sets of clips.
    assert sum(bool(NEW.fullmatch(text)) for text in after) >= 5, after
