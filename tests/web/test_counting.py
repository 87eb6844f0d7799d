"""What takes long over a large catalog is counted once, beside the pages that ask for it."""

from __future__ import annotations

import threading
import time

import pytest
from caches import make_cache
from starlette.testclient import TestClient

from cogcache.catalog.catalog import Catalog
from cogcache.errors import CatalogError
from cogcache.review.reviews import Reviews
from cogcache.web import browse, counting
from cogcache.web.app import create_app
from cogcache.web.browse import Browser
from cogcache.web.counting import StillCountingError


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    """A catalog whose few rows count as many."""
    make_cache(tmp_path)
    monkeypatch.setattr(browse, "_FEW", 0)
    return tmp_path / "cache" / "catalog.sqlite"


def until(found):
    for _ in range(2000):
        if (value := found()) is not None:
            return value
        time.sleep(0.01)
    raise AssertionError("not within 20 seconds")


def known(browser, name, read):
    try:
        return browser.remembered(name, read)
    except StillCountingError:
        return None


def test_a_count_goes_on_after_its_page_was_answered_and_is_made_once(catalog):
    go, counts = threading.Event(), []

    def slow(own):
        go.wait(20)
        counts.append(own.num_clips())
        return counts[-1]

    with Browser(catalog) as browser:
        for _ in range(3):
            with pytest.raises(StillCountingError):
                browser.remembered("clips", slow)
        assert browser.num_clips() == 3  # others are answered meanwhile
        go.set()
        assert until(lambda: known(browser, "clips", slow)) == 3
        assert browser.remembered("clips", slow) == 3
    assert counts == [3]


def test_after_a_change_the_older_count_is_shown_until_there_is_a_new_one(catalog):
    go = threading.Event()
    go.set()

    def accepted(own):
        go.wait(20)
        return own.value("SELECT count(*) FROM shown_edits")

    with Browser(catalog) as browser, Catalog(catalog) as opened:
        assert until(lambda: known(browser, "edits", accepted)) == 0
        go.clear()
        reviews = Reviews(opened, author="reviewer")
        reviews.accept(reviews.chosen()[:1])
        assert browser.remembered("edits", accepted) == 0
        assert browser.is_counting("edits")
        go.set()
        assert until(lambda: browser.remembered("edits", accepted) or None) == 1


def test_a_count_that_fails_is_told_and_is_not_waited_for_for_ever(catalog):
    with Browser(catalog) as browser:

        def broken(own):
            return own.rows("SELECT absent FROM shown_clips")

        def told():
            try:
                browser.remembered("broken", broken)
            except StillCountingError:
                return None
            except CatalogError as error:
                return error.problem

        assert "no such column" in until(told)


def test_closing_breaks_off_what_is_being_counted(catalog):
    endless = """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
        SELECT count(*) FROM n"""
    with Browser(catalog) as browser, pytest.raises(StillCountingError):
        browser.remembered("endless", lambda own: own.value(endless))
    assert not [each for each in threading.enumerate() if each.name.startswith("counting")]


def test_pages_say_that_something_is_being_counted_and_load_again(catalog, monkeypatch):
    monkeypatch.setattr(counting, "GRACE_S", 0.0)
    app = create_app(catalog.parent)
    with TestClient(app, base_url="http://localhost:8484") as client:
        first = client.get("/figures")
        assert first.status_code == 200
        if "being counted" in first.text:
            assert first.headers["Refresh"] == "1"
        assert until(lambda: "Coverage" in client.get("/figures").text or None)
