"""After any history of a folder, no caption goes out beside bytes that it was not made of.

Features are made up here, as no model has a part in it; files are found, digested, remembered,
forgotten, listed and exported by what the commands use.
"""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.holders import Look
from cogcache.catalog.placed import Placing
from cogcache.catalog.recovery import rows_of
from cogcache.catalog.search.full_text import CaptionSearch
from cogcache.catalog.search.selection import Selection
from cogcache.catalog.upkeep.unused import collect
from cogcache.errors import ConfigError, MissingVideosError
from cogcache.export.exporting import Options, export, export_beside
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.work_share import WorkShare
from cogcache.stages.clips.digests import DigestReader, look_up
from cogcache.store.store import FeatureStore
from cogcache.system.spool import Spool
from tests.support.caches import caption_of, key_of, write_clip_features

NAMES = [f"{folder}/{name}.mp4" for folder in ("one", "two") for name in "abc"]
FORMATS = ("jsonl", "cogvideox", "beside", "listings")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_clip(draw_scene(np.random.default_rng(0)), path)
    return path


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


class Folder:
    """A folder of videos with a cache, and who knows which bytes each clip was made of."""

    def __init__(self, root: Path, film: Path) -> None:
        self.root, self.cache, self._film = root / "films", root / "cache", film.read_bytes()
        self.out, self.made_of, self._number = root / "out", dict[str, str](), 0
        for folder in ("one", "two"):
            (self.root / folder).mkdir(parents=True)
        self.store = FeatureStore.create_or_open(self.cache)
        with Catalog(self.catalog):
            pass
        for name in NAMES[:4]:
            self.write(name)

    @property
    def catalog(self) -> Path:
        return self.cache / "catalog.sqlite"

    @property
    def videos(self) -> list[Path]:
        return sorted(self.root.rglob("*.mp4"))

    def path(self, number: int) -> Path:
        return self.root / NAMES[number % len(NAMES)]

    # ---- what happens to files ----------------------------------------------------------------

    def write(self, name: str) -> None:
        """Write a video that nobody has seen; all are of one size."""
        self._number += 1
        path, rest = self.root / name, self._number.to_bytes(4, "big")
        path.unlink(missing_ok=True)
        path.write_bytes(self._film + b"\0\0\0\x0cfree" + rest)
        os.utime(path, ns=(0, 10**18 + self._number * 10**9))

    def rename(self, one: int, other: int) -> None:
        if self.path(one).exists() and one != other:
            self.path(one).replace(self.path(other))

    def swap(self, one: int, other: int) -> None:
        if one != other and self.path(one).exists() and self.path(other).exists():
            self.path(one).rename(self.root / "t")
            self.path(other).rename(self.path(one))
            (self.root / "t").rename(self.path(other))

    def swap_folders(self, *_: int) -> None:
        (self.root / "one").rename(self.root / "t")
        (self.root / "two").rename(self.root / "one")
        (self.root / "t").rename(self.root / "two")

    def replace(self, one: int, _: int) -> None:
        self.write(NAMES[one])

    def copy(self, one: int, other: int) -> None:
        if not self.path(one).exists():
            return
        source = self.path(one).resolve()  # the other may be what a link leads to
        if source != self.path(other).absolute():
            self.path(other).unlink(missing_ok=True)
            shutil.copy2(source, self.path(other))  # with the time of the other

    def link(self, one: int, other: int) -> None:
        if self.path(one).exists() and one != other and not self.path(one).is_symlink():
            self.path(other).unlink(missing_ok=True)
            self.path(other).symlink_to(self.path(one))

    def delete(self, one: int, _: int) -> None:
        self.path(one).unlink(missing_ok=True)

    # ---- commands -----------------------------------------------------------------------------

    def extract(self, *_: int) -> None:
        digests: dict[Path, str] = {}
        with Catalog(self.catalog) as catalog:
            looked = look_up([v for v in self.videos if v.exists()], catalog, WorkShare())
            digests |= looked.digests
            spool = Spool(self.root, 0)
            with DigestReader(looked.unread, catalog, WorkShare(), spool) as reader:
                while reader.num_left:
                    digests |= {v: each for v, each in reader.take(1.0) if isinstance(each, str)}
            for video, each in digests.items():
                key = key_of(each)
                if key.digest not in self.store:
                    self.made_of[key.digest] = digest(video)
                    write_clip_features(self.store, video, key)
                if not catalog.clips.known([key.digest]):
                    row, clip = rows_of(self.store, key.digest, video.stat().st_size)
                    catalog.files.add_videos([{**row, "path": str(video)}])
                    catalog.clips.add([{**clip, "video": str(video)}])

    def caption(self, *_: int) -> None:
        with Catalog(self.catalog) as catalog:
            clips = {clip["feature_key"]: clip for clip in catalog.clips.rows()}
            catalog.captions.add(
                {**caption_of(clip), "caption": f"made of {self.made_of[key]}"}
                for key, clip in clips.items()
            )

    def gc(self, *_: int) -> None:
        collect(self.cache, remove=True)

    def export(self, one: int, _: int) -> set[str]:
        """Export in some form, see that all is right, and return the digests that went out."""
        format_ = FORMATS[one % len(FORMATS)]
        try:
            pairs = getattr(self, f"_{format_}")()
        except (ConfigError, MissingVideosError):  # there is nothing to export
            return set()
        for text, video in pairs:
            assert text.strip() == f"made of {digest(video)}"
        return {digest(video) for _, video in pairs}

    def _jsonl(self) -> list[tuple[str, Path]]:
        export(self.catalog, self.out, "jsonl", Selection(), Options(overwrite=True))
        rows = [json.loads(line) for line in self.out.read_text().splitlines()]
        self.out.unlink()
        return [(row["caption"], Path(row["video"])) for row in rows]

    def _cogvideox(self) -> list[tuple[str, Path]]:
        out = self.out.with_name("folder")
        options = Options(media="link", overwrite=True)
        export(self.catalog, out, "cogvideox", Selection(), options)
        texts = (out / "prompts.txt").read_text().splitlines()
        names = (out / "videos.txt").read_text().splitlines()
        return [(text, out / name) for text, name in zip(texts, names, strict=True)]

    def _beside(self) -> list[tuple[str, Path]]:
        export_beside(self.catalog, "txt", Selection(), Options(overwrite=True))
        texts = [*self.root.rglob("*.txt")]
        pairs = [(text.read_text(), text.with_suffix(".mp4")) for text in texts]
        for text in texts:
            text.unlink()
        return pairs

    def _listings(self) -> list[tuple[str, Path]]:
        with Catalog(self.catalog) as catalog:
            rows = Placing(catalog.holders(), Look()).each(catalog.captions.rows(), ("id",)).rows
        with CaptionSearch(self.catalog) as search:
            found = search.placed(search.search("made"), Look())
        rows += [{**hit.caption} for hit in found.hits]
        return [(row["caption"], Path(row["video"])) for row in rows]


DEEDS = (
    "rename", "swap", "swap_folders", "replace", "copy", "link", "delete",
    "extract", "caption", "gc", "export",
)  # fmt: skip
NUMBERS = st.integers(0, len(NAMES) - 1)
HISTORIES = st.lists(st.tuples(st.sampled_from(DEEDS), NUMBERS, NUMBERS), max_size=16)


def run(history: list[tuple[str, int, int]], film: Path) -> None:
    with TemporaryDirectory() as root:
        folder = Folder(Path(root), film)
        folder.extract()
        folder.caption()
        for deed, one, other in history:
            getattr(folder, deed)(one, other)
        for form in range(len(FORMATS)):
            folder.export(form, 0)
        # Not by leaving captions out: once all is captioned, each video has its own.
        folder.extract()
        folder.caption()
        there = {digest(video) for video in folder.videos if video.exists()}
        for form in range(len(FORMATS)):
            assert folder.export(form, 0) == there


CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=CHECKS)
@given(HISTORIES)
@example([("swap", 0, 1)])
@example([("link", 0, 1), ("copy", 1, 0)])
@example([("replace", 0, 0), ("extract", 0, 0), ("gc", 0, 0), ("delete", 1, 0), ("gc", 0, 0)])
@example([("link", 0, 1), ("extract", 0, 0), ("replace", 0, 0), ("export", 1, 0)])
def test_no_caption_goes_out_beside_other_bytes(film, history):
    run(history, film)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=200, deadline=None, suppress_health_check=CHECKS)
@given(HISTORIES)
def test_no_caption_goes_out_beside_other_bytes_in_200_histories(film, history):
    run(history, film)
