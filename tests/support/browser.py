"""A headless Chromium, and pages served for it on loopback."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from cogcache.web.app import create_app
from cogcache.web.editing import Editing

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
START_S = 20.0


def find_browser() -> tuple[str, str] | None:
    """Return the paths of Chromium and of its driver, if both are there."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def served(cache: Path, token: str | None = None, editing: Editing | None = None) -> Iterator[str]:
    """Serve the pages over a cache while a `with` block runs; yields their address."""
    config = uvicorn.Config(create_app(cache, token, editing), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        give_up = time.monotonic() + START_S
        while not server.started and thread.is_alive() and time.monotonic() < give_up:
            time.sleep(0.02)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def chromium(*, dark: bool = False, size: tuple[int, int] = (1280, 900)) -> Iterator[Any]:
    """Start a Chromium that can reach nothing but loopback; yields its driver."""
    found = find_browser()
    assert found is not None, "install chromium and chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for argument in (
        "--headless=new",
        "--no-sandbox",  # it does not start without when tests run as root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--mute-audio",
        "--autoplay-policy=no-user-gesture-required",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--window-size={size[0]},{size[1]}",
        *(("--force-dark-mode",) if dark else ()),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found[1]))
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()
