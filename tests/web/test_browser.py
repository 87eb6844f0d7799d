"""The pages in a real Chromium that can reach nothing but loopback."""

from __future__ import annotations

import pytest
from browser import chromium, find_browser, served
from collection import HOSTILE_NAME, SCRIPT, Collection, make_collection
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

WAIT_S = 20
TOKEN = "correct horse battery"

if find_browser() is None:
    pytest.skip(
        "Chromium is not here: apt install chromium chromium-driver", allow_module_level=True
    )


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="module")
def address(collection):
    with served(collection.cache) as address:
        yield address


@pytest.fixture(scope="module")
def shared():
    with chromium() as driver:
        yield driver


@pytest.fixture
def browser(shared, address):
    shared.get_log("browser")
    shared.get(f"{address}/")
    return shared


def until(browser, condition):
    # A page that has just been left has no elements any more.
    wait = WebDriverWait(browser, WAIT_S, 0.1, [StaleElementReferenceException])
    return wait.until(lambda _: condition())


def texts(browser, selector):
    return [each.text for each in browser.find_elements(By.CSS_SELECTOR, selector)]


def script(browser, code):
    return browser.execute_script(f"return {code}")


def complaints(browser):
    """Return what the browser complained of: broken policies, missing files, errors in scripts."""
    return [entry["message"] for entry in browser.get_log("browser")]


def test_search_as_one_types(browser):
    box = browser.find_element(By.NAME, "q")
    box.send_keys("blue harb")
    until(browser, lambda: texts(browser, "#results mark")[:2] == ["blue", "harbour"])
    assert texts(browser, "#results .count") == ["2 captions"]
    assert browser.current_url.endswith("/?q=blue+harb")
    assert browser.switch_to.active_element == box
    assert not complaints(browser)


def test_a_search_can_be_taken_back(browser):
    box = browser.find_element(By.NAME, "q")
    box.send_keys("nothing of the kind")
    until(browser, lambda: texts(browser, "#results .count") == ["No caption fits"])
    box.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
    until(browser, lambda: len(texts(browser, ".card")) == 4)


def test_an_impossible_search_says_so(browser):
    browser.find_element(By.NAME, "q").send_keys('"')
    until(browser, lambda: texts(browser, "#results [role=alert]"))


def test_a_filter_filters_at_once(browser):
    browser.find_element(By.CSS_SELECTOR, "select[name=flag] option[value=empty]").click()
    until(browser, lambda: texts(browser, "#results .count") == ["2 captions"])


def test_every_picture_is_there(browser):
    until(
        browser,
        lambda: script(
            browser, "[...document.images].every(i => i.complete && i.naturalWidth === 192)"
        ),
    )


def test_a_clip_is_played_from_its_start_to_its_end(browser, address, collection):
    browser.find_element(By.CSS_SELECTOR, f"a[href$='{collection.keys[0]}']").click()
    video = "document.querySelector('video')"
    until(browser, lambda: script(browser, f"{video}.readyState >= 2"))
    browser.find_element(By.ID, "replay").click()
    until(browser, lambda: script(browser, f"{video}.paused && {video}.currentTime > 1.9"))
    assert script(browser, f"{video}.currentTime < 2.6")
    assert not complaints(browser)


def test_a_later_clip_begins_where_it_should(browser, address, collection):
    browser.get(f"{address}/clip/{collection.keys[1]}")
    video = "document.querySelector('video')"
    until(browser, lambda: script(browser, f"{video}.readyState >= 2"))
    assert script(browser, f"{video}.currentTime") == pytest.approx(2.0, abs=0.15)
    assert script(browser, f"{video}.seekable.length") == 1


def test_a_video_that_is_gone_is_told(browser, address, collection):
    path = collection.videos[1]
    away = path.rename(path.with_suffix(".away"))
    try:
        browser.get(f"{address}/clip/{collection.keys[2]}")
        [told] = texts(browser, ".problem")
        assert told.startswith("Last seen as")
        assert "no file is there any more" in told
    finally:
        away.rename(path)


def test_a_video_that_goes_while_its_page_is_open_is_told(browser, address, collection):
    path = collection.videos[1]
    browser.get(f"{address}/clip/{collection.keys[2]}")
    away = path.rename(path.with_suffix(".away"))
    try:
        # Asked for under another address, as the browser keeps what it has read.
        browser.execute_script(
            "const video = document.querySelector('video');"
            "video.src = video.src.replace('#', '?again#'); video.load()"
        )
        until(browser, lambda: "cannot play" in texts(browser, "#playing")[0])
    finally:
        away.rename(path)


def test_captions_stand_side_by_side(browser, address, collection):
    browser.get(f"{address}/clip/{collection.keys[0]}")
    boxes = [each.rect for each in browser.find_elements(By.CSS_SELECTOR, ".beside .caption")][:2]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]


def test_two_sets_are_compared(browser, address):
    browser.find_element(By.LINK_TEXT, "Differences").click()
    for name, chosen in (("a", "color · tiny · nf4"), ("b", "color · tiny · none")):
        option = f"select[name={name}] option[value='{chosen}']"
        browser.find_element(By.CSS_SELECTOR, option).click()
    browser.find_element(By.XPATH, "//button[.='Compare']").click()
    until(browser, lambda: texts(browser, ".pairs del") == ["Red.", "Red"])
    assert texts(browser, ".pairs ins") == ["Crimson.", "Crimson"]


def test_failures_are_shown_with_their_reason(browser):
    browser.find_element(By.LINK_TEXT, "Failures").click()
    assert "no_video_stream" in until(browser, lambda: texts(browser, "tbody tr"))[0]


def test_memory_over_time_is_drawn(browser):
    browser.find_element(By.LINK_TEXT, "Runs").click()
    until(browser, lambda: browser.find_elements(By.LINK_TEXT, "1"))[0].click()
    chart = until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "svg.chart"))[0]
    assert chart.aria_role in {"img", "image"}
    assert chart.accessible_name.startswith("Memory over time. Peak ")


def test_hostile_captions_and_names_are_text(browser, address, collection):
    for path in ("/", f"/clip/{collection.keys[2]}", f"/clip/{collection.keys[3]}", "/failures"):
        browser.get(address + path)
        assert browser.title.endswith("cogcache")
        assert not browser.find_elements(By.CSS_SELECTOR, "img[src='x'], main script")
    assert not complaints(browser)
    browser.get(f"{address}/clip/{collection.keys[2]}")
    assert SCRIPT in texts(browser, "article .said")[0]
    browser.get(f"{address}/clip/{collection.keys[3]}")
    assert texts(browser, "h1")[0].startswith(HOSTILE_NAME.partition("\u202e")[0])


def test_the_policy_stops_script_that_got_in(browser):
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = \"document.title='taken'\";"
        "document.body.append(s)"
    )
    assert browser.title != "taken"
    assert any("Content Security Policy" in message for message in complaints(browser))


def test_the_keyboard_alone_reaches_a_clip(browser):
    seen = []
    for _ in range(15):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        active = browser.switch_to.active_element
        seen.append(active.accessible_name)
        assert script(browser, "getComputedStyle(document.activeElement).outlineStyle") != "none"
        if "card" in (active.get_attribute("class") or ""):
            break
    assert seen[:3] == ["Skip to the content", "cogcache", "Clips"]
    assert "Search captions" in [name.splitlines()[0] for name in seen]
    active.send_keys(Keys.ENTER)
    until(browser, lambda: "/clip/" in browser.current_url)


def test_everything_that_can_be_used_has_a_name(browser, address, collection):
    for path in ("/", f"/clip/{collection.keys[0]}", "/differences", "/failures", "/runs/1"):
        browser.get(address + path)
        for each in browser.find_elements(
            By.CSS_SELECTOR, "a, button, input, select, [tabindex='0']"
        ):
            assert each.accessible_name or each.tag_name == "pre", (
                path,
                each.get_attribute("outerHTML"),
            )


def test_nothing_is_wider_than_a_narrow_screen(browser, address, collection):
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        for path in (
            "/",
            f"/clip/{collection.keys[3]}",
            "/differences",
            "/failures",
            "/runs",
            "/figures",
        ):
            browser.get(address + path)
            assert script(browser, "document.documentElement.scrollWidth") <= 360, path
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, address, collection, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for path in ("/?q=boat", f"/clip/{collection.keys[2]}", "/differences", "/failures"):
        browser.get(address + path)
        low = browser.execute_script(CONTRAST)
        assert not low, (path, low)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_token_is_asked_for_once(collection):
    with served(collection.cache, TOKEN) as address, chromium() as browser:
        browser.get(f"{address}/runs")
        browser.find_element(By.NAME, "token").send_keys("wrong", Keys.ENTER)
        until(browser, lambda: texts(browser, "[role=alert]") == ["This is not the token."])
        browser.find_element(By.NAME, "token").send_keys(TOKEN, Keys.ENTER)
        until(browser, lambda: len(texts(browser, ".card")) == 4)
        browser.get(f"{address}/runs")
        assert texts(browser, "h1") == ["Runs"]


def test_without_script_a_search_is_sent_with_enter(address):
    with chromium() as browser:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        browser.get(f"{address}/")
        browser.find_element(By.NAME, "q").send_keys("blue", Keys.ENTER)
        until(browser, lambda: texts(browser, "#results .count") == ["4 captions"])


CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d');
const rgb = (color) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (color) => rgb(color).slice(0, 3).map(c => c / 255)
  .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (node) => {
  const color = getComputedStyle(node).backgroundColor;
  return rgb(color)[3] ? color : node.parentElement ? ground(node.parentElement) : 'white';
};
const words = [...document.body.querySelectorAll('*')].filter(node =>
  node.checkVisibility() && [...node.childNodes].some(c => c.nodeType === 3 && c.data.trim()));
return words.map(node => {
  const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
  return [node.outerHTML.slice(0, 80), (a + 0.05) / (b + 0.05)];
}).filter(([, ratio]) => ratio < 4.5);
"""
