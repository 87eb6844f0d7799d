"""Captions are reviewed in the page: only there, only by its own forms, and nothing is lost."""

from __future__ import annotations

import re
from functools import partial

import pytest
from axe_core_python.selenium import Axe
from browser import chromium, find_browser, served
from caches import make_cache
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from starlette.testclient import TestClient

from cogcache.catalog.catalog import Catalog
from cogcache.cli.web import _exported
from cogcache.errors import ConfigError
from cogcache.review.reviews import Reviews
from cogcache.web.app import create_app
from cogcache.web.editing import Editing

TOKEN = "correct horse battery staple"
OWN = {"sec-fetch-site": "same-origin", "origin": "http://testserver"}
WAIT_S = 20
WIDTH = "document.documentElement.scrollWidth"


@pytest.fixture
def cache(tmp_path):
    make_cache(tmp_path, 12)
    return tmp_path / "cache"


@pytest.fixture
def editing(cache):
    return Editing(TOKEN, "reviewer 1", exporter=partial(_exported, cache / "catalog.sqlite"))


@pytest.fixture
def client(cache, editing):
    with TestClient(create_app(cache, TOKEN, editing), follow_redirects=False) as client:
        client.get("/", params={"token": TOKEN})
        yield client


def reviewed(cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        return {each.caption["id"]: each for each in Reviews(catalog).chosen()}


def form(client, path="/review", **more):
    """Return the fields of the page's first form that posts, with others in their place."""
    page = client.get(path).text
    body = re.search(r'<form method="post".*?</form>', page, re.DOTALL)[0]
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', body))
    return fields | more


def post(client, fields, headers=OWN, path="/review"):
    return client.post(path, data=fields, headers=headers)


def test_the_player_plays_the_clip_of_a_video_that_begins_late(client, cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        clip = next(each for each in catalog.clips.rows() if each["start_s"] is not None)
        catalog.files.note_offset(clip["video_digest"], 5.5)
        captions = catalog.captions.rows(feature_keys=[clip["feature_key"]])
    page = client.get("/review", params={"at": captions[0]["id"]}).text
    assert f'data-start="{clip["start_s"] + 5.5}"' in page
    assert f"#t={clip['start_s'] + 5.5}" in page


def test_a_form_reviews_and_goes_on_to_the_next(client, cache):
    done = post(client, form(client, "/review?prompt=default"))
    assert done.status_code == 303
    assert done.headers["location"] == "/review?prompt=default&after=1"
    assert reviewed(cache)[1].state == "accepted"
    assert reviewed(cache)[1].version["author"] == "reviewer 1"


@pytest.mark.parametrize(
    ("headers", "change"),
    [
        ({"sec-fetch-site": "cross-site", "origin": "http://elsewhere"}, {}),
        ({"origin": "http://elsewhere"}, {}),
        ({"origin": "null"}, {}),
        ({}, {}),
        ({"sec-fetch-site": "same-site", "origin": "http://testserver"}, {}),
        (OWN, {"form_token": "0" * 64}),
        (OWN, {"form_token": ""}),
    ],
    ids=str,
)
def test_what_other_pages_send_changes_nothing(client, cache, headers, change):
    assert post(client, form(client, **change), headers).status_code == 403
    assert not any(each.version for each in reviewed(cache).values())


def test_without_the_sessions_token_nothing_is_shown_or_changed(client, cache, editing):
    fields = form(client)
    client.cookies.clear()
    assert client.get("/review").status_code == 401
    assert post(client, fields).status_code == 401
    assert not any(each.version for each in reviewed(cache).values())


def test_pages_that_change_something_need_a_token(cache, editing):
    with pytest.raises(ConfigError, match="need a token"):
        create_app(cache, None, editing)


def test_without_edit_the_pages_only_show(cache):
    with TestClient(create_app(cache, TOKEN)) as client:
        page = client.get("/", params={"token": TOKEN}).text
        assert "/review" not in page
        assert client.get("/review").status_code == 404
        assert client.post("/review", data={}, headers=OWN).status_code in (404, 405)


def test_a_long_form_and_an_odd_one_are_refused(client, cache):
    assert post(client, form(client, text="x" * 300_000)).status_code == 413
    assert post(client, form(client, action="burn")).status_code == 400
    assert post(client, form(client, key="nothing")).status_code == 400
    assert post(client, form(client, action="edit", text=" ")).status_code == 400


def test_of_two_browsers_the_second_is_shown_the_conflict_and_loses_nothing(client, cache):
    mine = form(client, "/review?at=1", action="edit", text="mine <b>bold</b>")
    post(client, form(client, "/review?at=1", action="edit", text="theirs"))
    done = post(client, mine)
    assert done.status_code == 409
    assert 'id="conflict"' in done.text
    assert "theirs" in done.text
    assert "mine &lt;b&gt;bold" in done.text
    assert reviewed(cache)[1].text == "theirs"
    again = dict(re.findall(r'name="(version)" value="([^"]*)"', done.text))
    assert post(client, mine | again).status_code == 303
    assert reviewed(cache)[1].text == "mine <b>bold</b>"


def test_the_queue_keeps_its_place_when_captions_leave_its_filter(client, cache):
    seen = []
    path = "/review?state=unreviewed"
    while 'name="key"' in client.get(path).text:
        fields = form(client, path, action="reject" if len(seen) % 2 else "accept")
        seen.append(fields["key"])
        path = post(client, fields).headers["location"]
    assert len(seen) == len({*seen}) == 12
    assert "The end of the queue" in client.get(path).text


def test_filters_choose_the_queue(client, cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        first = Reviews(catalog).chosen()[0]
        keys = [row["caption_key"] for row in catalog.captions.rows()]
        rows = [
            {"name": "grounding", "feature_key": "", "caption_key": key, "score": -number,
             "model": "", "prompt": "", "epoch": 1, "details": {"least": [["seen", -1.0, 0]]}}
            for number, key in enumerate(keys)
        ]  # fmt: skip
        catalog.scores.add(rows)
        Reviews(catalog).tag([first], ["dark"])
    assert "of 1 in this queue" in client.get("/review?name=11.mp4").text
    assert "of 1 in this queue" in client.get("/review?tag=dark").text
    assert "of 3 in this queue" in client.get("/review?min_score=grounding=-2").text
    worst = client.get("/review?sort=grounding").text
    assert keys[-1] in worst
    assert '<span class="weak">seen</span>' in worst
    after = form(client, "/review?sort=grounding")
    assert keys[-2] in client.get(post(client, after).headers["location"]).text
    assert client.get("/review?min_score=grounding").status_code == 400


def test_a_caption_is_shown_with_its_own_scores_and_those_of_its_clip_alone(client, cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        made = {"model": "", "prompt": "", "epoch": 1, "details": {"least": []}}
        first, second = (row["feature_key"] for row in catalog.clips.rows()[:2])
        rows = [("motion", first, 0.125), ("motion", second, 0.875)]
        catalog.scores.add(
            {**made, "name": name, "feature_key": key, "caption_key": "", "score": value}
            for name, key, value in rows
        )
    page = client.get("/review?at=1").text
    assert "0.125" in page
    assert "0.875" not in page


def test_captions_sorted_by_a_score_of_their_clips_go_forth_and_back(client, cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        made = {"model": "", "prompt": "", "epoch": 1, "details": {}}
        clips = catalog.clips.rows()
        catalog.scores.add(
            {**made, "name": "motion", "feature_key": clip["feature_key"], "caption_key": "",
             "score": -float(number // 2)}
            for number, clip in enumerate(clips)
        )  # fmt: skip
    page, seen = client.get("/review?sort=motion").text, []
    while found := re.search(r'rel="next"[^>]*href="\?([^"]*)"', page):
        seen.append(re.search(r'name="key" value="(\w+)"', page)[1])
        page = client.get(f"/review?{found[1]}".replace("&amp;", "&")).text
    seen.append(re.search(r'name="key" value="(\w+)"', page)[1])
    assert len({*seen}) == len(seen) == 12
    back = []
    while found := re.search(r'rel="prev"[^>]*href="\?([^"]*)"', page):
        page = client.get(f"/review?{found[1]}".replace("&amp;", "&")).text
        back.append(re.search(r'name="key" value="(\w+)"', page)[1])
    assert back == seen[-2::-1]


def test_a_bulk_change_is_shown_made_and_taken_back(client, cache):
    page = client.get("/review/bulk?old=seen&new=heard").text
    assert "12 captions would change" in page
    assert "<del>seen</del>" in page
    fields = form(client, "/review/bulk?old=seen&new=heard")
    done = post(client, fields, path="/review/bulk")
    assert "12 captions were changed" in done.text
    assert all("heard" in each.text for each in reviewed(cache).values())
    back = dict(re.findall(r'name="(form_token|action|batch)" value="([^"]*)"', done.text)[:3])
    assert "12 captions are as they were" in post(client, back, path="/review/bulk").text
    assert not any("heard" in each.text for each in reviewed(cache).values())


def test_a_pattern_that_is_none_is_told(client):
    page = client.get("/review/bulk?old=(&regex=1")
    assert page.status_code == 400
    assert "is no pattern" in page.text


def odd_scores(clips):
    """Return scores by which one clip is static, and two look like another."""
    made = {"caption_key": "", "model": "", "prompt": "", "epoch": 1, "details": {}}
    keys = [clip["feature_key"] for clip in clips]
    rows = [{**made, "name": "static", "feature_key": key, "score": 0.0} for key in keys]
    rows[0]["score"] = 1.0
    twins = [{**made, "name": "duplicate", "feature_key": key, "score": 0.0} for key in keys]
    for twin, likeness in ((twins[3], 0.9975), (twins[5], 0.9985)):
        twin |= {"score": likeness, "details": {"of": keys[1]}}
    motion = [{**made, "name": "motion", "feature_key": key, "score": 0.5} for key in keys]
    motion[0]["score"] = 0.0005
    return [*rows, *twins, *motion]


def test_static_clips_and_clusters_of_near_duplicates_are_shown_with_the_one_that_is_kept(
    client, cache
):
    assert "cogcache score clips" in client.get("/odd").text
    with Catalog(cache / "catalog.sqlite") as catalog:
        clips = catalog.clips.rows()
        catalog.scores.add(odd_scores(clips))
    keys = [clip["feature_key"] for clip in clips]
    static = client.get("/odd").text
    assert "1 static clip<" in static
    assert keys[0] in static
    assert "motion 0.0005" in static
    assert keys[1] not in static
    page = client.get("/odd?kind=duplicate").text
    assert "2 clips in 1 cluster;" in page
    kept, first, second = (page.index(f"/clip/{keys[n]}") for n in (1, 5, 3))
    assert kept < first < second
    assert page.index("kept", kept) < first
    assert "similarity 0.9985" in page
    assert keys[2] not in page
    assert client.get("/odd?kind=nothing&page=9999").status_code == 200


# ---- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_browser():
    with chromium() as browser:
        yield browser


needs_browser = pytest.mark.skipif(find_browser() is None, reason="Chromium is not here")


def until(browser, condition):
    wait = WebDriverWait(browser, WAIT_S, 0.02, [StaleElementReferenceException])
    return wait.until(lambda _: condition())


def press(browser, key):
    """Press a key, and wait for the page that comes of it."""
    old = browser.find_element(By.TAG_NAME, "html")
    browser.find_element(By.TAG_NAME, "body").send_keys(key)
    until(browser, lambda: gone(old) and browser.find_elements(By.ID, "help"))


def gone(element):
    try:
        element.is_enabled()
    except Exception:  # noqa: BLE001 - stale in one of several ways
        return True
    return False


def review_by_keyboard(folder, number, num_edits):
    """Review clips by keyboard alone, replace in bulk and undo it, export; hold all together."""
    make_cache(folder, number)
    cache = folder / "cache"
    catalog = cache / "catalog.sqlite"
    editing = Editing(TOKEN, "reviewer 1", exporter=partial(_exported, catalog))
    with served(cache, TOKEN, editing) as address, chromium() as browser:
        small = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", small)
        browser.get(f"{address}/review?state=unreviewed&token={TOKEN}")
        for count in range(number):
            if count < num_edits:
                browser.find_element(By.TAG_NAME, "body").send_keys("e")
                box = browser.switch_to.active_element
                box.send_keys(Keys.CONTROL, "a", Keys.NULL, f"edited {count}")
                old = browser.find_element(By.TAG_NAME, "html")
                box.send_keys(Keys.CONTROL, Keys.ENTER)
                until(browser, lambda old=old: gone(old) and browser.find_elements(By.ID, "help"))
            else:
                press(browser, "x" if count % 4 == 3 else "a")
        assert "end of the queue" in browser.find_element(By.ID, "progress").text
        press_undo(browser, address)
        browser.get(f"{address}/review/bulk?old=edited&new=changed")
        browser.find_element(By.ID, "apply").click()
        until(browser, lambda: browser.find_elements(By.ID, "undo"))
        changed = sum(each.text.startswith("changed") for each in reviewed(cache).values())
        browser.find_element(By.ID, "undo").click()
        until(browser, lambda: "as they were" in browser.find_element(By.ID, "outcome").text)
        width = browser.execute_script("return document.documentElement.scrollWidth")
        rows = browser.execute_async_script(
            "const done = arguments[0];"
            "fetch('/review/export').then(r => r.text()).then(t => done(t.trim().split('\\n')))"
        )
    return cache, changed, width, rows


def press_undo(browser, address):
    """Undo the last caption's review, and do it again."""
    browser.get(f"{address}/review?at=1")
    press(browser, "u")
    assert "not reviewed" in browser.find_element(By.ID, "state").text
    browser.find_element(By.TAG_NAME, "body").send_keys("e")
    box = browser.switch_to.active_element
    box.send_keys(Keys.CONTROL, "a", Keys.NULL, "edited 0")
    old = browser.find_element(By.TAG_NAME, "html")
    box.send_keys(Keys.CONTROL, Keys.ENTER)
    until(browser, lambda: gone(old) and browser.find_elements(By.ID, "help"))


@needs_browser
@pytest.mark.parametrize(
    ("number", "num_edits"), [(8, 2), pytest.param(100, 10, marks=pytest.mark.slow)]
)
def test_clips_are_reviewed_by_keyboard_alone_and_the_catalog_has_the_same(
    tmp_path, number, num_edits
):
    cache, changed, width, rows = review_by_keyboard(tmp_path, number, num_edits)
    found = reviewed(cache)
    rejected = sum(each.state == "rejected" for each in found.values())
    assert sum(each.is_edited for each in found.values()) == num_edits == changed
    assert rejected == sum(count % 4 == 3 for count in range(num_edits, number))
    assert sum(each.state == "accepted" for each in found.values()) == number - rejected
    assert len(rows) == number - rejected
    for count in range(num_edits):
        assert any(f'"edited {count}"' in row for row in rows)
    assert width <= 390


def write(browser, text):
    """Write a text into the box of the page and save it."""
    browser.find_element(By.TAG_NAME, "body").send_keys("e")
    box = browser.switch_to.active_element
    box.send_keys(Keys.CONTROL, "a", Keys.NULL, text)
    old = browser.find_element(By.TAG_NAME, "html")
    box.send_keys(Keys.CONTROL, Keys.ENTER)
    until(browser, lambda: gone(old) and browser.find_elements(By.ID, "help"))


@needs_browser
def test_of_two_browsers_at_once_the_second_is_shown_the_conflict_and_both_texts_are_kept(
    cache, editing
):
    with served(cache, TOKEN, editing) as address, chromium() as one, chromium() as other:
        for browser in (one, other):
            browser.get(f"{address}/review?at=1&token={TOKEN}")
        write(one, "Of the first.")
        write(other, "Of the second.")
        assert "Somebody has reviewed" in other.find_element(By.ID, "conflict").text
        assert "Of the first." in other.find_element(By.ID, "caption").text
        box = other.find_element(By.CSS_SELECTOR, "#edit textarea")
        assert box.get_attribute("value") == "Of the second."
        assert reviewed(cache)[1].text == "Of the first."
        old = other.find_element(By.TAG_NAME, "html")
        box.send_keys(Keys.CONTROL, Keys.ENTER)
        until(other, lambda: gone(old) and other.find_elements(By.ID, "help"))
    with Catalog(cache / "catalog.sqlite") as catalog:
        key = reviewed(cache)[1].key
        texts = [version["text"] for version in catalog.edits.history(key)]
    assert texts == ["Of the first.", "Of the second."]


@needs_browser
def test_labels_names_and_contrast_are_there_for_a_screen_reader(cache, editing):
    with served(cache, TOKEN, editing) as address, chromium() as browser:
        browser.get(f"{address}/review?token={TOKEN}")
        unnamed = browser.execute_script(
            "return [...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
            ".filter(e => !e.labels || !e.labels.length).map(e => e.outerHTML)"
        )
        assert unnamed == []
        keys = {e.get_attribute("aria-keyshortcuts") for e in browser.find_elements(
            By.CSS_SELECTOR, "[aria-keyshortcuts]")}  # fmt: skip
        assert {"a", "x", "u", "j"} <= keys
        press(browser, "a")
        assert browser.find_element(By.ID, "progress").get_attribute("role") == "status"
        levels = [e.tag_name for e in browser.find_elements(By.CSS_SELECTOR, "h1, h2")]
        assert levels[0] == "h1"
        expected = ("favicon", "thumbnail", "/video/")  # the videos of this cache are made up
        told = [entry["message"] for entry in browser.get_log("browser")]
        assert not [each for each in told if not any(name in each for name in expected)]


@needs_browser
@pytest.mark.parametrize(
    "path",
    [
        "/review",
        "/review?at=1",
        "/review/bulk?old=seen&new=heard",
        "/?prompt=default",
        "/odd",
        "/odd?kind=duplicate",
    ],
)
def test_axe_finds_nothing(cache, editing, shared_browser, path):
    with Catalog(cache / "catalog.sqlite") as catalog:
        reviews = Reviews(catalog)
        reviews.edit(reviews.chosen()[0], "Another caption.")
        reviews.tag([reviews.chosen()[0]], ["dark"])
        catalog.scores.add(odd_scores(catalog.clips.rows()))
    with served(cache, TOKEN, editing) as address:
        shared_browser.get(f"{address}{path}{'&' if '?' in path else '?'}token={TOKEN}")
        small = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        shared_browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", small)
        assert shared_browser.execute_script(f"return {WIDTH}") <= 390
        shared_browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        found = Axe().run(shared_browser)["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
