"""What is said where `tiny`, the model in the package, is shown videos that it knows nothing of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from cogcache.cli.streams import say
from cogcache.system import CachePaths

if TYPE_CHECKING:
    from cogcache.settings import Settings

TOY: Final = "tiny"
KNOWS: Final = (
    "tiny knows only moving coloured shapes, such as `cogcache demo` makes: what it says of other "
    "videos means nothing. `cogcache configs` lists models for them."
)


def say_what_toy_knows(settings: Settings, cache: Path) -> None:
    """Say so where `tiny` has features of a video that is not of the kind it was trained on."""
    if settings.model == TOY and _has_others(cache):
        say(KNOWS, "yellow")


def _has_others(cache: Path) -> bool:
    """Say whether a clip of the toy is of a video that has not the size and rate of its clips."""
    from cogcache.catalog import Catalog
    from cogcache.selftest import FPS, SIDE

    path = CachePaths(cache).catalog
    if not path.is_file():
        return False
    with Catalog(path) as catalog:
        digests = {row["video_digest"] for row in catalog.clips.rows(model=TOY)}
        videos = catalog.files.videos(digests=digests)
    own = (SIDE, SIDE, FPS)
    return any((row["width"], row["height"], row["fps"]) != own for row in videos)
