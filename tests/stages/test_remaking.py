"""Captions that were rejected: left out of chains and summaries, and made again only when asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenes import catalog_of, settings, write_scene

from cogcache.catalog.search.selection import Selection
from cogcache.catalog.upkeep.forgotten import kept_captions
from cogcache.catalog.upkeep.verify import verify
from cogcache.review.reviews import Reviews
from cogcache.stages.caption import caption
from cogcache.stages.captioning.fill_prompts import NO_FIRST_CAPTION
from cogcache.stages.extract import extract

COLOR = {"color": "What color is the shape?"}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    """Three parts of a video, each with a caption, the first of them rejected."""
    folder = tmp_path_factory.mktemp("rejected")
    write_scene(folder / "scene.mp4", 0)
    extract([folder], folder / "cache", asked())
    caption(folder / "cache", asked())
    reject_first(folder / "cache")
    return folder / "cache"


def asked(**changes: object):
    given = {"quantization": "none", "max_new_tokens": 8, "prompts": COLOR, "segment_s": 0.5}
    return settings(**{**given, **changes})


def colors(cache):
    with catalog_of(cache) as catalog:
        rows = catalog.captions.rows(prompt_name="color")
        return sorted(rows, key=lambda row: row["start_s"])


def reject_first(cache):
    with catalog_of(cache) as catalog:
        reviews = Reviews(catalog, author="reviewer 1")
        (first, *_) = colors(cache)
        reviews.reject([reviews.of_keys([first["caption_key"]])[first["caption_key"]]])


def test_a_chain_and_a_summary_leave_a_rejected_caption_out(captioned):
    parts = len(colors(captioned))
    assert parts > 2
    chain = {**COLOR, "second": "Say it once more: {caption.color}"}
    report = caption(captioned, asked(prompts=chain, summarize=True, summary_of="color"))
    assert report.counts.failed == 1
    with catalog_of(captioned) as catalog:
        assert [row["reason"] for row in catalog.failures.rows(stage="caption")] == [
            NO_FIRST_CAPTION
        ]
        assert len(catalog.captions.rows(prompt_name="second")) == parts - 1
        (summary,) = catalog.captions.rows(prompt_name="summary")
    assert "gaps" in summary["flags"]


def test_a_rejected_caption_is_made_again_only_when_that_is_asked(captioned):
    before = colors(captioned)
    assert caption(captioned, asked()).counts.done == 0
    seeds = []
    for _ in range(2):
        report = caption(captioned, asked(remake_rejected=True))
        assert (report.counts.done, report.counts.cached) == (1, len(before) - 1)
        after = colors(captioned)
        retried = after[0]["settings"]["retried"]
        assert retried["because"] == ["rejected"]
        seeds.append(retried["changes"]["seed"])
        assert after[1:] == before[1:]
        assert caption(captioned, asked(remake_rejected=True)).counts.done == 0
        reject_first(captioned)
    assert seeds[0] != seeds[1]
    key = before[0]["caption_key"]
    kept = kept_captions(captioned / "catalog.sqlite", Selection()).captions
    assert before[0]["caption"] in {row["caption"] for row in kept}
    with catalog_of(captioned) as catalog:
        told = [(each["action"], each["author"]) for each in catalog.edits.history(key)]
    assert told == [("reject", "reviewer 1"), ("remade", "cogcache")] * 2 + [
        ("reject", "reviewer 1")
    ]
    assert verify(captioned) == []
