"""`--prefer` takes one set of captions for each clip, together with all that else chooses them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from cogcache.catalog.catalog import Catalog
from cogcache.cli import main
from cogcache.review.reviews import Reviews
from tests.support.caches import caption_of, make_cache

PREFER = ("--prefer", "reviewed,another")


@pytest.fixture
def typed(tmp_path):
    """Three clips with captions of two models; the first clip's of the first model is edited."""
    make_cache(tmp_path)
    cache = tmp_path / "cache"
    with Catalog(cache / "catalog.sqlite") as catalog:
        scores = []
        for number, clip in enumerate(catalog.clips.rows()):
            own = {
                "caption_key": f"{number}" * 64,
                "model": "another",
                "caption": f"other {number}",
            }
            catalog.captions.add([{**caption_of(clip), **own}])
            row = {"name": "grounding", "feature_key": "", "caption_key": own["caption_key"]}
            made = {"model": "", "prompt": "", "epoch": 1, "details": {}}
            scores.append({**row, **made, "score": 1.0 - number / 4})
        catalog.scores.add(scores)
        reviews = Reviews(catalog, author="reviewer")
        first = next(each for each in reviews.chosen() if each.caption["model"] != "another")
        reviews.edit(first, "edited zebra")

    def run(*words):
        done = CliRunner().invoke(main, [*map(str, words), "--cache", str(cache)])
        assert done.exit_code == 0, done.output
        return done

    return run


def listed(typed, *words):
    rows = json.loads(typed("ls", *words, "--json", "--no-check").stdout)
    return [row["caption"] for row in rows]


def test_each_clip_has_the_edited_caption_or_else_that_of_the_model_named(typed):
    assert sorted(listed(typed, *PREFER)) == ["edited zebra", "other 1", "other 2"]


def test_a_least_score_and_an_order_hold_for_what_is_preferred(typed):
    at_least = listed(typed, *PREFER, "--min-score", "grounding=0.6")
    assert at_least == ["other 1"]
    in_order = listed(typed, *PREFER, "--sort", "grounding")
    assert [text for text in in_order if text != "edited zebra"] == ["other 2", "other 1"]


def test_a_search_finds_what_is_preferred_alone(typed):
    found = json.loads(typed("search", "other", *PREFER, "--json").stdout)
    assert {row["caption"] for row in found} == {"other 1", "other 2"}


@pytest.mark.parametrize("how", ["all", "best:grounding", "random:1"])
def test_an_export_of_several_captions_a_clip_has_the_preferred_one(typed, tmp_path, how):
    out = tmp_path / "out.jsonl"
    typed("export", out, *PREFER, "--captions-per-clip", how)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["caption"] for row in rows) == ["edited zebra", "other 1", "other 2"]
