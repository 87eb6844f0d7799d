"""A clip is one card, whatever models made captions of it, with the caption that was asked for."""

from __future__ import annotations

import pytest
from caches import caption_of, make_cache
from starlette.testclient import TestClient

from cogcache.catalog.catalog import Catalog
from cogcache.review.reviews import Reviews
from cogcache.web.app import create_app
from cogcache.web.browse import Browser, Filter


@pytest.fixture
def catalog(tmp_path):
    """A cache of three clips, each captioned by two models, and of one by another prompt."""
    make_cache(tmp_path)
    path = tmp_path / "cache" / "catalog.sqlite"
    with Catalog(path) as opened:
        for number, clip in enumerate(opened.clips.rows()):
            own = {"caption_key": f"{number}" * 64, "model": "another", "caption": "of another"}
            opened.captions.add([{**caption_of(clip), **own}])
            own = {"caption_key": f"{number}a" * 32, "prompt_name": "short", "caption": "short"}
            opened.captions.add([{**caption_of(clip), **own}])
    return path


def test_a_clip_with_captions_of_two_models_is_one_card_of_the_chosen_prompt(catalog):
    with Browser(catalog) as browser:
        page = browser.captions(Filter(prompt="default"))
        assert (page.total, len(page.rows)) == (3, 3)
        assert len({row["feature_key"] for row in page.rows}) == 3
        short = browser.captions(Filter(prompt="short"))
        assert {row["caption"] for row in short.rows} == {"short"}


def test_a_card_shows_the_edited_caption_where_there_is_one(catalog):
    with Catalog(catalog) as opened:
        reviews = Reviews(opened)
        reviews.edit(reviews.chosen()[0], "edited")
    with Browser(catalog) as browser:
        said = [row["caption"] for row in browser.captions(Filter(prompt="default")).rows]
    assert said.count("edited") == 1
    assert len(said) == 3


def test_a_clip_whose_features_two_models_made_is_one_card(catalog):
    with Catalog(catalog) as opened:
        for number, clip in enumerate(opened.clips.rows()):
            opened.clips.add([{**clip, "feature_key": f"{number}b" * 32, "family": "other"}])
        assert len(opened.clips.rows()) == 6
    with Browser(catalog) as browser:
        page = browser.clips()
    assert (page.total, len(page.rows)) == (3, 3)
    assert all(row["caption"] for row in page.rows)


def test_a_clip_of_which_a_search_finds_two_captions_is_one_card_with_both(catalog):
    with TestClient(create_app(catalog.parent), base_url="http://localhost") as client:
        page = client.get("/", params={"q": "another OR seen"}).text
    assert page.count('class="card"') == 3
    assert page.count("<mark>another</mark>") == page.count("<mark>seen</mark>") == 3
    assert "6 captions" in page
