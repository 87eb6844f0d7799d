"""Takes the pictures of the docs: `make screenshots`. Needs Chromium and some minutes.

The collection is that of `cogcache demo`, captioned by the bundled model, so that the pictures
show what anybody can have.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from cogcache.catalog.catalog import Catalog
from cogcache.review.reviews import Reviews
from cogcache.selftest.demonstration import make_clips
from cogcache.selftest.shapes import QUESTIONS
from cogcache.settings.settings import load_settings
from cogcache.stages.both import run_stage
from cogcache.stages.score import ScoreRequest, score
from cogcache.web.browse import Browser
from cogcache.web.editing import Editing
from cogcache.web.report import write_report
from tests.support.browser import chromium, served

DOCS = Path(__file__).parent
PROMPTS = ("detail", "summary", "color")
COLORS = 128
TOKEN = "for these pictures alone"


def main() -> None:
    """Make a collection and take its pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        cache = make_cache(Path(temporary))
        with Browser(cache / "catalog.sqlite") as browser:
            clip = browser.clips().rows[0]["feature_key"]
        pages = {
            "web-clips": ("/?q=slowly&prompt=detail", False),
            "web-clip": (f"/clip/{clip}", True),
            "web-run": ("/runs/1", False),
        }
        with served(cache) as address:
            for name, (path, dark) in pages.items():
                save(name, take(address + path, dark=dark))
        correct(cache)
        with served(cache, TOKEN, Editing(TOKEN, "reviewer 1")) as address:
            save("web-review", take(f"{address}/review?at=1&token={TOKEN}", dark=False))
        write_report(cache, DOCS / "report.png")
        save("report", (DOCS / "report.png").read_bytes())


def make_cache(folder: Path) -> Path:
    """Caption the clips of the demonstration, one file that is no video beside them."""
    make_clips(folder / "clips")
    (folder / "clips" / "torn.mp4").write_bytes(b"no video at all")
    prompts = [f"--prompt={name}={QUESTIONS[name][0]}" for name in PROMPTS]
    run_stage(["extract", str(folder / "clips"), f"--cache={folder / 'cache'}", "--model=tiny"])
    for kind in ("nf4", "none"):
        arguments = ["--model=tiny", f"--quantization={kind}", "--max-new-tokens=64", *prompts]
        if status := run_stage(["caption", f"--cache={folder / 'cache'}", *arguments]):
            sys.exit(status)
    return folder / "cache"


def correct(cache: Path) -> None:
    """Score the captions, and edit the first."""
    given = {"model": "tiny", "quantization": "none"}
    score(cache, load_settings(None, given), ScoreRequest(("text", "model")))
    with Catalog(cache / "catalog.sqlite") as catalog:
        reviews = Reviews(catalog, author="reviewer 1")
        first = reviews.chosen(numbers=[1])[0]
        reviews.edit(first, first.text.replace("move", "drift"))
        reviews.tag(reviews.chosen(numbers=[1]), ["checked"])


def take(address: str, *, dark: bool) -> bytes:
    """Return a picture of a page."""
    with chromium(dark=dark, size=(1100, 800)) as browser:
        browser.get(address)
        time.sleep(1.5)  # for the first frame of a video
        return browser.get_screenshot_as_png()


def save(name: str, picture: bytes) -> None:
    """Save a picture with few colours: a tenth of the size, and the eye sees no difference."""
    image = Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLORS)
    image.save(DOCS / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
