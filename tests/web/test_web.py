"""The pages, asked by HTTP: what they show, and whom and what they refuse."""

from __future__ import annotations

import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from click.testing import CliRunner
from collection import HOSTILE_NAME, SCRIPT, Collection, make_collection
from starlette.testclient import TestClient

from cogcache.catalog.catalog import Catalog
from cogcache.cli import main
from cogcache.errors import CatalogError, ConfigError
from cogcache.store.store import FeatureStore
from cogcache.web.app import create_app
from cogcache.web.browse import Browser, CaptionSet, Filter
from cogcache.web.charts import timeline
from cogcache.web.figures import collection as figures_of
from cogcache.web.guard import is_loopback
from cogcache.web.media import media_type
from cogcache.web.rendering import MARKS, differences, marked, span, visible

TOKEN = "correct horse battery"
PAGES = ["/", "/?q=red", "/differences", "/failures", "/runs", "/runs/1", "/figures"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="module")
def client(collection):
    app = create_app(collection.cache)
    with TestClient(app, base_url="http://localhost:8484") as client:
        yield client


@pytest.fixture(scope="module")
def locked(collection):
    """Return a client of pages that need the token."""
    app = create_app(collection.cache, TOKEN)
    with TestClient(app, base_url="http://films.example", follow_redirects=False) as client:
        yield client
        client.cookies.clear()


class Tags(HTMLParser):
    """Collects the names of all tags, all attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def all_pages(collection: Collection) -> list[str]:
    return [*PAGES, *(f"/clip/{key}" for key in collection.keys)]


# ---- what the pages show --------------------------------------------------------------------


def test_the_grid_shows_every_clip(client, collection):
    page = client.get("/").text
    assert all(f"/clip/{key}" in page for key in collection.keys)
    assert "4 clips" in page


def test_each_clip_in_the_grid_has_its_own_caption(client):
    page = Tags(client.get("/").text)
    for text in ("A red boat leaves", "A blue boat enters", "A page that says", "一只红色的船"):
        assert page.text.count(text) == 1


def test_a_search_finds_and_marks_words(client):
    page = client.get("/?q=boat").text
    assert page.count("<mark>boat</mark>") == 4


def test_the_last_word_of_a_search_may_be_unfinished(client):
    assert "<mark>harbour</mark>" in client.get("/?q=harb").text


def test_chinese_captions_are_found(client):
    assert "<mark>红色</mark>" in client.get("/?q=红色").text


def test_search_as_one_types_gets_the_results_alone(client):
    part = client.get("/?q=boat&part=1").text
    assert "<mark>boat</mark>" in part
    assert "<html" not in part


def test_a_flag_filters(client):
    page = Tags(client.get("/?flag=empty").text)
    assert "2 captions" in page.text


def test_a_clip_shows_all_its_captions(client, collection):
    page = Tags(client.get(f"/clip/{collection.keys[0]}").text)
    for text in ("A red boat leaves the harbour.", "Red.", "Crimson.", "What color is it?"):
        assert text in page.text


def test_a_player_seeks_to_its_clip(client, collection):
    page = client.get(f"/clip/{collection.keys[0]}").text
    assert f"/video/{collection.digests[0]}#t=0.0,2.0" in page


def test_a_clip_leads_to_those_beside_it(client, collection):
    page = client.get(f"/clip/{collection.keys[1]}").text
    assert re.search(rf'rel="prev" href="/clip/{collection.keys[0]}"', page)
    assert re.search(rf'rel="next" href="/clip/{collection.keys[2]}"', page)


def test_captions_outlive_their_clip_on_its_page(collection, tmp_path):
    with sqlite3.connect(collection.cache / "catalog.sqlite") as source:
        (tmp_path / "cogcache.toml").write_bytes((collection.cache / "cogcache.toml").read_bytes())
        with sqlite3.connect(tmp_path / "catalog.sqlite") as copy:
            source.backup(copy)
            copy.execute("DELETE FROM clips")
    source.close(), copy.close()
    with TestClient(create_app(tmp_path), base_url="http://localhost") as client:
        answer = client.get(f"/clip/{collection.keys[0]}")
    assert answer.status_code == 200
    assert "A red boat leaves the harbour." in answer.text


def test_differences_of_two_sets_are_marked(client):
    page = client.get("/differences?a=color · tiny · nf4&b=color · tiny · none").text
    assert "<del>Red.</del>" in page
    assert "<ins>Crimson.</ins>" in page
    assert "Blue" not in page  # the same in both


def test_failures_show_their_reason(client):
    page = Tags(client.get("/failures").text)
    assert "no_video_stream" in page.text
    assert "holds no picture <b>at all</b>" in page.text


def test_a_run_shows_its_memory_over_time(client):
    page = client.get("/runs/1").text
    assert page.count("<polygon") == 2
    assert "planned: 143 MiB" in page


def test_a_run_that_has_not_ended_has_a_page(tmp_path):
    made = make_collection(tmp_path)
    with Catalog(made.cache / "catalog.sqlite") as catalog:
        run = catalog.runs.start("extract", "tiny", {})
    with TestClient(create_app(made.cache), base_url="http://localhost") as client:
        assert "running" in client.get(f"/runs/{run}").text
        assert client.get("/runs").status_code == 200
        assert client.get("/figures").status_code == 200


def test_an_empty_cache_has_pages(tmp_path):
    FeatureStore.create_or_open(tmp_path / "cache")
    Catalog(tmp_path / "cache" / "catalog.sqlite").close()
    with TestClient(create_app(tmp_path / "cache"), base_url="http://localhost") as client:
        assert "No clip fits" in client.get("/").text
        for path in ("/differences", "/failures", "/runs", "/figures"):
            assert client.get(path).status_code == 200, path


def test_figures_count_the_collection(client):
    page = Tags(client.get("/figures").text)
    assert "100.0 %" in page.text
    assert "color · tiny · nf4" in page.text


# ---- nothing that is shown is run -----------------------------------------------------------


def test_no_page_holds_markup_of_captions_or_names(client, collection):
    for path in [*all_pages(collection), "/?q=page", f"/?q={SCRIPT}", f"/failures?reason={SCRIPT}"]:
        page = Tags(client.get(path).text)
        assert page.names.count("script") == 1, path  # our own file
        assert not [name for name, _ in page.attributes if name.startswith("on")], path
        assert ("src", "x") not in page.attributes, path


def test_hostile_captions_show_as_text(client, collection):
    assert SCRIPT in Tags(client.get(f"/clip/{collection.keys[2]}").text).text


def test_hostile_names_show_as_text(client, collection):
    shown = Tags(client.get(f"/clip/{collection.keys[3]}").text).text
    assert HOSTILE_NAME.replace("\u202e", r"\u202e") in shown


def test_letters_that_turn_a_name_around_are_shown(client):
    assert visible("a\u202egpj.mp4\n") == r"a\u202egpj.mp4\n"


def test_no_page_has_inline_script_or_style(client, collection):
    for path in all_pages(collection):
        page = client.get(path).text
        assert "style=" not in page, path
        assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == [""], path
        assert "<style" not in page, path


def test_no_page_names_another_host(client, collection):
    for path in all_pages(collection):
        links = [v for n, v in Tags(client.get(path).text).attributes if n in {"src", "href"}]
        assert not [link for link in links if "//" in link], path


def test_every_answer_has_the_policy(client, collection):
    paths = [*all_pages(collection), "/none", "/static/page.js", f"/video/{collection.digests[0]}"]
    for path in paths:
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_marks_do_not_let_markup_through():
    begin, end = MARKS
    assert marked(f"<b>{begin}<i>{end}") == "&lt;b&gt;<mark>&lt;i&gt;</mark>"


def test_differences_escape_both_sides():
    one, other = differences("a <b> c", "a <i> c")
    assert (one, other) == ("a <del>&lt;b&gt;</del> c", "a <ins>&lt;i&gt;</ins> c")


# ---- odd requests get clean answers ---------------------------------------------------------


@pytest.mark.parametrize("text", ['"', "*", "-", "OR", '""', "()", "^:", "-boat"])
def test_a_search_for_nothing_says_so(client, text):
    answer = client.get("/", params={"q": text})
    assert answer.status_code == 400
    assert 'role="alert"' in answer.text


@pytest.mark.parametrize("text", ["boat AND", "NEAR(boat", 'caption:"', "boat)) OR (((", "'; --"])
def test_syntax_of_the_index_is_no_syntax_here(client, text):
    assert client.get("/", params={"q": text}).status_code in {200, 400}


def test_an_oversized_search_is_refused(client):
    answer = client.get("/", params={"q": "a" * 5000})
    assert answer.status_code == 400
    assert "5001" in answer.text or "5000" in answer.text


@pytest.mark.parametrize("number", ["0", "-1", "x", "1e9", "9" * 15, "9" * 4000, "²"])
def test_an_odd_page_number_shows_a_page(client, number):
    for path in ("/", "/failures", "/runs", "/differences"):
        assert client.get(path, params={"page": number, "after": number}).status_code == 200


def test_what_is_not_there_is_a_page_that_says_so(client):
    for path in ("/clip/x", "/runs/99", "/nowhere", "/video/x", f"/video/{'0' * 64}"):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert "<h1>" in answer.text


def test_unknown_sets_are_told(client):
    assert "no such set" in client.get("/differences?a=x&b=y").text


def test_writing_is_not_offered(client):
    for method in ("post", "put", "delete"):
        assert getattr(client, method)("/").status_code == 405


def test_a_query_that_takes_too_long_is_broken_off(collection):
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    )
    with (
        Browser(collection.cache / "catalog.sqlite", deadline_s=0.05) as browser,
        pytest.raises(CatalogError, match="interrupted"),
    ):
        browser.rows(endless)


def test_the_pages_cannot_write(collection):
    with (
        Browser(collection.cache / "catalog.sqlite") as browser,
        pytest.raises(CatalogError, match="readonly"),
    ):
        browser.rows("DELETE FROM captions")


# ---- videos and pictures --------------------------------------------------------------------


def test_a_video_is_served_whole(client, collection):
    answer = client.get(f"/video/{collection.digests[0]}")
    assert answer.content == collection.videos[0].read_bytes()
    assert answer.headers["content-type"] == "video/mp4"


def test_a_part_of_a_video_is_served(client, collection):
    answer = client.get(f"/video/{collection.digests[0]}", headers={"range": "bytes=10-19"})
    whole = collection.videos[0].read_bytes()
    assert answer.status_code == 206
    assert answer.content == whole[10:20]
    assert answer.headers["content-range"] == f"bytes 10-19/{len(whole)}"


def test_a_part_beyond_the_end_is_refused(client, collection):
    answer = client.get(f"/video/{collection.digests[0]}", headers={"range": "bytes=99999999-"})
    assert answer.status_code == 416


@pytest.mark.parametrize(
    "path",
    [
        "/video/..%2f..%2fetc%2fpasswd",
        "/video/%2fetc%2fpasswd",
        "/thumbnail/..%2f..%2fcatalog.sqlite",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/../../catalog.sqlite",
        "/static//etc/passwd",
        "/clip/..%2f..",
    ],
)
def test_no_path_escapes(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert "import" not in answer.text


def test_a_file_that_took_a_videos_place_is_not_served(tmp_path):
    made = make_collection(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * made.videos[0].stat().st_size)
    made.videos[0].unlink()
    made.videos[0].symlink_to(secret)
    with TestClient(create_app(made.cache), base_url="http://localhost") as client:
        assert client.get(f"/video/{made.digests[1]}").status_code == 200
        answer = client.get(f"/video/{made.digests[0]}")
    assert answer.status_code == 404
    assert "changed since" in answer.text


def test_a_page_of_html_is_never_served_as_such():
    assert media_type(Path("a.html")) == "application/octet-stream"
    assert media_type(Path("a.svg")) == "application/octet-stream"
    assert media_type(Path("a.mkv")) == "video/x-matroska"


def test_a_thumbnail_is_the_jpeg_of_the_features(client, collection):
    answer = client.get(f"/thumbnail/{collection.keys[0]}")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content[:2] == b"\xff\xd8"


def test_without_features_there_is_another_picture(client):
    answer = client.get(f"/thumbnail/{'f' * 64}")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("image/svg+xml")


# ---- who is let in --------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["films.example", "127.0.0.1.films.example", "", "[::1"])
def test_without_a_token_only_names_of_this_machine_are_answered(client, collection, host):
    for path in ("/", f"/video/{collection.digests[0]}"):
        assert client.get(path, headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8484", "[::1]:8484", "LOCALHOST:1"])
def test_names_of_this_machine_are_answered(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


def test_without_the_token_nothing_is_shown(locked, collection):
    locked.cookies.clear()
    paths = [*all_pages(collection), f"/thumbnail/{collection.keys[0]}", "/nowhere"]
    for path in [*paths, f"/video/{collection.digests[0]}", "//", "/Static/x"]:
        answer = locked.get(path)
        assert answer.status_code == 401, path
        assert "boat" not in answer.text


@pytest.mark.parametrize("given", ["", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é"])
def test_a_wrong_token_is_refused(locked, given):
    locked.cookies.clear()
    assert locked.get("/", params={"token": given}).status_code == 401
    assert locked.post("/token", data={"token": given}).status_code == 401
    bearer = f"Bearer {given}".encode()
    assert locked.get("/", headers={"authorization": bearer}).status_code == 401
    assert locked.get("/", headers={"cookie": f"cogcache={TOKEN}"}).status_code == 401


def test_a_bearer_is_let_in(locked):
    locked.cookies.clear()
    assert locked.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_token_in_an_address_becomes_a_cookie(locked):
    locked.cookies.clear()
    answer = locked.get("/runs", params={"token": TOKEN, "page": "1"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs?page=1")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert TOKEN not in answer.headers["set-cookie"]
    assert locked.get("/runs").status_code == 200


def test_the_token_can_be_typed(locked):
    locked.cookies.clear()
    assert locked.post("/token", data={"token": TOKEN}).headers["location"] == "/"
    assert locked.get("/").status_code == 200


def test_a_redirect_stays_here(locked):
    locked.cookies.clear()
    answer = locked.get("http://films.example//elsewhere.example/x", params={"token": TOKEN})
    assert answer.headers["location"] == "/elsewhere.example/x"


def test_an_endless_form_is_refused(locked):
    locked.cookies.clear()
    assert locked.post("/token", content=b"token=" + b"x" * 10**6).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "films.example"])
def test_an_address_for_others_needs_a_token(collection, host):
    done = CliRunner().invoke(main, ["serve", f"--cache={collection.cache}", f"--host={host}"])
    assert done.exit_code == 2
    assert "needs --token" in done.output


def test_a_short_token_is_refused():
    with pytest.raises(ConfigError, match="fewer than 16"):
        create_app(Path("cache"), "short")


def test_the_example_of_the_docs_serves_the_pages(collection, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "web.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(collection.cache.parent)
    assert collection.cache.name == "cache"
    names: dict[str, Any] = {}
    exec(code, names)  # what the page says, as a reader would type it
    with TestClient(names["app"], base_url="http://films.example") as client:
        assert client.get("/").status_code == 401
        known = {"Authorization": f"Bearer {names['token']}"}
        assert client.get("/", headers=known).status_code == 200


def test_loopback_is_known():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "", "localhost.example")))


# ---- the queries behind ---------------------------------------------------------------------


def test_totals_follow_what_is_written(collection, tmp_path):
    made = make_collection(tmp_path)
    path = made.cache / "catalog.sqlite"
    with Catalog(path) as catalog:
        row = {**catalog.captions.rows()[0], "num_tokens": 55, "flags": ["looping"]}
        del row["id"]
        catalog.captions.add([row], replace=True)
        catalog.clips.remove(made.keys[:1])
    with Browser(path) as browser:
        found = figures_of(browser)
        assert (found["clips"], found["captions"]) == (3, 16)
        assert found["lengths"][50] == 1
        assert found["flags"] == {"empty": 2, "looping": 1}


def test_sets_are_told_apart(collection):
    with Browser(collection.cache / "catalog.sqlite") as browser:
        assert browser.sets()[CaptionSet("color", "tiny", "none")] == 4
        assert browser.captions(Filter(prompt="color", flag="empty")).total == 2


def test_spans_are_written_as_a_clock():
    assert span({"start_s": 0.0, "end_s": None}) == "whole video"
    assert span({"start_s": 24.0, "end_s": 83.5}) == "0:24–1:23.5"  # noqa: RUF001
    assert span({"start_s": 3600.0, "end_s": None}) == "1:00:00–end"  # noqa: RUF001


def test_a_timeline_of_a_device_shows_the_device():
    sample = {"anonymous_bytes": 5, "file_bytes": 5, "device_bytes": 7, "reserved_bytes": 9}
    drawn = timeline([{"time_s": 0.0, **sample}, {"time_s": 1.0, **sample}], {"planned": 10})
    assert [area.name for area in drawn.areas] == ["device"]
    assert drawn.summary == "Peak 7 B in 1 s; planned: 10 B"


# ---- the command ----------------------------------------------------------------------------


def test_the_command_serves_until_it_is_interrupted(collection):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", f"--cache={collection.cache}", f"--port={port}"]
    command = [sys.executable, "-m", "cogcache", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == f"http://127.0.0.1:{port}/  (Ctrl-C ends it)\n"
            assert "4 clips" in _fetch(port, "/")
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0


def test_a_port_that_is_taken_is_told(collection):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"--port={taken.getsockname()[1]}"
        done = CliRunner().invoke(main, ["serve", f"--cache={collection.cache}", port])
    assert done.exit_code == 2
    assert "cannot listen on 127.0.0.1" in done.output


def _fetch(port: int, path: str) -> str:
    for _ in range(200):
        try:
            with urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.read().decode()
        except URLError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")
