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

from cogcache.selftest.demonstration import make_clips
from cogcache.selftest.shapes import QUESTIONS
from cogcache.stages.both import run_stage
from cogcache.web.browse import Browser
from cogcache.web.report import write_report
from tests.support.browser import chromium, served

DOCS = Path(__file__).parent
PROMPTS = ("detail", "summary", "color")
COLORS = 128


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
        write_report(cache, DOCS / "report.png")
        save("report", (DOCS / "report.png").read_bytes())


def make_cache(folder: Path) -> Path:
    """Caption the clips of the demonstration, one file that is no video beside them."""
    make_clips(folder / "clips")
    (folder / "clips" / "torn.mp4").write_bytes(b"no video at all")
    prompts = [f"--prompt={name}={QUESTIONS[name][0]}" for name in PROMPTS]
    run_stage(["extract", str(folder / "clips"), f"--cache={folder / 'cache'}"])
    for kind in ("nf4", "none"):
        arguments = [f"--quantization={kind}", "--max-new-tokens=64", *prompts]
        if status := run_stage(["caption", f"--cache={folder / 'cache'}", *arguments]):
            sys.exit(status)
    return folder / "cache"


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
