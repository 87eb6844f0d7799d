"""Videos of object stores are captioned like any, and features kept in one; on a real server."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.file_facts import FileFacts
from cogcache.catalog.holders import in_folder
from cogcache.catalog.upkeep.merge import merge
from cogcache.catalog.upkeep.unused import collect
from cogcache.catalog.upkeep.verify import verify
from cogcache.cli.cache_option import LocationType
from cogcache.errors import CacheError, ConfigError, CorruptFeaturesError, VideoError
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import load_settings
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.store.repacking import compression_of, repack
from cogcache.store.store import FeatureStore
from cogcache.system import object_stores
from cogcache.system.object_stores import RemoteError, RemoteFacts
from cogcache.system.spool import Fetching, Spool
from cogcache.system.urls import ObjectUrl
from cogcache.video.file_state import file_digest
from cogcache.video.paths import find_videos
from tests.support.caches import key_of, make_cache, write_clip_features
from tests.support.films import write_film
from tests.support.s3_server import SECRET, Fault, serving

GIVEN = {"max_frames": 2, "max_new_tokens": 2, "quantization": "none", "decode_workers": 1}
MIB = 2**20


@pytest.fixture(scope="module")
def s3():
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Wait no seconds between tries, and begin each test with a server that has no faults."""
    monkeypatch.setattr(object_stores, "_LONGEST_WAIT_S", 0.01)
    object_stores._known.clear()


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool", 40 * MIB)


@pytest.fixture
def faults(s3):
    yield s3.faults
    s3.faults.clear()


class TestAUrl:
    @pytest.mark.parametrize(
        "url", ["s3://bucket/a b/c.mp4", "https://host:80/v.mp4?id=3", "gs://b/ü"]
    )
    def test_is_kept_to_the_letter(self, url):
        assert str(ObjectUrl.of(url)) == url

    @pytest.mark.parametrize(
        "url",
        [
            "https://me:hunter2@host/a.mp4",
            "s3://id:hunter2@bucket/a.mp4",
            "https://host/a.mp4?X-Amz-Signature=abc",
            "https://host/a.mp4?token=abc",
        ],
    )
    def test_that_proves_who_asks_is_refused_and_not_repeated(self, url):
        with pytest.raises(ConfigError) as caught:
            find_videos([url])
        assert not any(word in str(caught.value) for word in ("hunter2", "abc"))

    def test_is_no_path(self):
        with pytest.raises(TypeError):
            os.fspath(ObjectUrl.of("s3://bucket/a.mp4"))

    def test_names_a_folder_of_the_catalog(self, tmp_path):
        file, option = CatalogFile(tmp_path / "catalog.sqlite"), LocationType()
        video = ObjectUrl.of("s3://bucket/f/a.mp4")
        FileFacts(file).remember_digest(video, RemoteFacts(1, 1, "tag"), "a" * 64)
        for text, count in (("s3://bucket/f/", 1), ("s3://bucket/g", 0), ("s3://bucket/f", 1)):
            test, values = in_folder("path", option.convert(text, None, None), "n")
            found = file.query(f"SELECT path FROM whole_files WHERE {test}", values)
            assert len([*found]) == count
        file.close()

    def test_whose_parts_a_path_would_not_keep_apart_is_refused(self):
        with pytest.raises(ConfigError, match="not kept apart"):
            ObjectUrl.of("s3://bucket/a//b.mp4")

    def test_whose_package_is_missing_names_it(self):
        with pytest.raises(ConfigError, match=r"needs a package") as caught:
            find_videos(["abfs://container/a.mp4"])
        assert "adlfs" in caught.value.hint

    def test_of_a_bucket_names_our_extra(self):
        program = (
            "import sys; sys.modules['s3fs'] = None\n"
            "from cogcache.video.paths import find_videos; find_videos(['s3://bucket/a.mp4'])"
        )
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "pip install -c constraints.txt '.[s3]'" in done.stderr

    def test_of_no_known_kind_is_refused(self):
        with pytest.raises(ConfigError, match="nosuch"):
            find_videos(["nosuch://a/b.mp4"])


@pytest.fixture(scope="module")
def listed(s3):
    for name in ("f/a.mp4", "f/b.MKV", "f/deep/c.mp4", "f/notes.txt", "f/ö ü.mp4"):
        s3.put(name, name.encode())


@pytest.mark.usefixtures("listed")
class TestFinding:
    @pytest.mark.parametrize(
        ("url", "found"),
        [
            ("s3://bucket/f/", ["a.mp4", "b.MKV", "deep/c.mp4", "ö ü.mp4"]),
            ("s3://bucket/f", ["a.mp4", "b.MKV", "deep/c.mp4", "ö ü.mp4"]),
            ("s3://bucket/f/*.mp4", ["a.mp4", "ö ü.mp4"]),
            ("s3://bucket/f/**/c.mp4", ["deep/c.mp4"]),
            ("s3://bucket/f/notes.txt", ["notes.txt"]),
        ],
    )
    def test_takes_objects_prefixes_and_patterns(self, url, found):
        assert [str(path) for path in find_videos([url])] == [f"s3://bucket/f/{n}" for n in found]

    def test_takes_lists(self, tmp_path):
        (tmp_path / "list.txt").write_text(
            "# of a store\ns3://bucket/f/a.mp4\ns3://bucket/f/deep/\n"
        )
        found = find_videos([f"@{tmp_path}/list.txt"])
        assert [str(path) for path in found] == [
            "s3://bucket/f/a.mp4",
            "s3://bucket/f/deep/c.mp4",
        ]

    def test_asks_once_for_a_whole_prefix(self, s3):
        s3.asked.clear()
        for path in find_videos(["s3://bucket/f/"]):
            object_stores.facts(path)
        assert s3.count("HEAD", "/f/") == 0

    @pytest.mark.parametrize(
        "url", ["s3://bucket/none.mp4", "s3://bucket/g/*.mp4", "s3://none/a.mp4"]
    )
    def test_finds_nothing_with_a_reason(self, url):
        with pytest.raises(ConfigError, match=r"nothing is there|no such object"):
            find_videos([url])


class TestFetching:
    def test_gives_the_bytes_and_their_digest(self, s3, spool):
        content = np.random.default_rng(0).bytes(20 * MIB)
        video = ObjectUrl.of(s3.put("large.mp4", content))
        digest = spool.digest(video)
        with spool.local(video, digest) as path:
            assert path.read_bytes() == content
            assert file_digest(path) == digest

    def test_happens_once_while_the_spool_has_room(self, s3, spool):
        video = ObjectUrl.of(s3.put("once.mp4", b"video"))
        s3.asked.clear()
        digest = spool.digest(video)
        for _ in range(3):
            with spool.local(video, digest):
                pass
        assert s3.count("GET", "once.mp4") == 1

    @pytest.mark.parametrize("after", [0, 1])
    @pytest.mark.parametrize("status", ["", "503 SlowDown", "500 InternalError"])
    def test_goes_on_after_faults_that_pass(self, s3, spool, faults, status, after):
        content = np.random.default_rng(1).bytes(20 * MIB)
        video = ObjectUrl.of(s3.put("faulty.mp4", content))
        faults.append(Fault("GET", "faulty.mp4", 2, status, after))
        with spool.local(video, spool.digest(video)) as path:
            assert path.read_bytes() == content

    @pytest.mark.parametrize(
        ("status", "reason"),
        [("403 AccessDenied", "forbidden"), ("503 SlowDown", "fetch_failed"), ("", "fetch_failed")],
    )
    def test_that_never_succeeds_is_a_failure(self, s3, spool, faults, status, reason):
        video = ObjectUrl.of(s3.put("never.mp4", b"video" * 1000))
        faults.append(Fault("GET", "never.mp4", 10_000, status))
        with pytest.raises(VideoError) as caught:
            spool.digest(video)
        assert caught.value.reason == reason
        assert "s3://bucket/never.mp4" in caught.value.problem
        assert not [*spool.folder.iterdir()]

    def test_of_an_object_that_is_gone_is_a_failure(self, s3, spool):
        with pytest.raises(VideoError, match=r"s3://bucket/gone\.mp4: no such object"):
            spool.digest(ObjectUrl("s3://bucket/gone.mp4"))

    def test_notices_that_an_object_is_another_by_now(self, s3, spool):
        video = ObjectUrl.of(s3.put("changed.mp4", b"before"))
        digest = spool.digest(video)
        shutil.rmtree(spool.folder)
        s3.put("changed.mp4", b"after!")
        object_stores._known.clear()  # as in a decode worker, which has seen no listing
        with pytest.raises(VideoError, match="not what it was"), spool.local(video, digest):
            pass

    def test_keeps_to_its_bound(self, s3, spool):
        small = Spool(spool.folder, 25 * MIB)
        for number in range(4):
            small.digest(ObjectUrl.of(s3.put(f"bound-{number}.mp4", bytes(10 * MIB))))
            held = sum(path.stat().st_size for path in small.folder.iterdir())
            assert held <= small.most_bytes
        with pytest.raises(VideoError, match="--spool-gib"):
            small.digest(ObjectUrl.of(s3.put("bound.mp4", bytes(30 * MIB))))

    def test_what_is_being_read_outlives_its_place_in_the_spool(self, s3, spool):
        small = Spool(spool.folder, 15 * MIB)
        video = ObjectUrl.of(s3.put("held.mp4", bytes(10 * MIB)))
        with small.local(video) as path:
            small.digest(ObjectUrl.of(s3.put("other.mp4", bytes(10 * MIB))))
            assert path.stat().st_size == 10 * MIB
        assert len([*small.folder.iterdir()]) == 1

    def test_names_the_object_where_a_decoder_names_the_file(self, s3, spool):
        def decode(path: Path) -> None:
            raise VideoError("not_a_video", f"{path} is none")

        video = ObjectUrl.of(s3.put("text.mp4", b"no video"))
        with pytest.raises(VideoError, match=r"^s3://bucket/text\.mp4 is none"):
            Fetching(decode, spool)(video)

    def test_works_for_any_url_of_fsspec(self, spool):
        import fsspec

        with fsspec.open("memory://folder/a.mp4", "wb") as file:
            file.write(b"video")
        (video,) = find_videos(["memory://folder/"])
        with spool.local(video, spool.digest(video)) as path:
            assert path.read_bytes() == b"video"


@pytest.fixture(scope="module")
def both(s3, tmp_path_factory):
    """The same clips captioned from a store, with features in it, and from a folder."""
    root = tmp_path_factory.mktemp("both")
    (root / "videos").mkdir()
    for number in range(3):
        path = root / f"videos/{number}.mp4"
        write_clip(draw_scene(np.random.default_rng(number), 4), path)
        s3.put(f"videos/{number}.mp4", path.read_bytes())
    s3.put("videos/bad.mp4", b"no video")
    (root / "videos/bad.mp4").write_bytes(b"no video")
    settings = load_settings(None, GIVEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(root))
        patch.setattr("tempfile.tempdir", None)
        extract([root / "videos"], root / "local", settings)
        features = "s3://bucket/features"
        extract(["s3://bucket/videos/"], root / "remote", settings, features=features)
        for name in ("local", "remote"):
            caption(root / name, settings)
        s3.asked.clear()
        again = extract(["s3://bucket/videos/"], root / "remote", settings)
        patch.setattr("tempfile.tempdir", None)
    return root, again


def rows_of(cache: Path, table: str) -> list[dict[str, object]]:
    with Catalog(cache / "catalog.sqlite") as catalog:
        return getattr(catalog, table).rows()


class TestARunOverAStore:
    def test_gives_the_features_and_captions_of_a_run_over_files(self, both):
        root, _ = both
        keys = [
            {row["feature_key"] for row in rows_of(root / n, "clips")} for n in ("local", "remote")
        ]
        assert keys[0] == keys[1]
        assert len(keys[0]) == 3
        texts = [
            sorted((row["feature_key"], row["caption"]) for row in rows_of(root / name, "captions"))
            for name in ("local", "remote")
        ]
        assert texts[0] == texts[1]

    def test_keeps_the_features_in_the_store_and_they_prove(self, both, s3):
        root, _ = both
        store = FeatureStore.open(root / "remote")
        assert store.features == "s3://bucket/features"
        assert not (root / "remote/features").exists()
        for key in store.keys():  # noqa: SIM118
            assert f"features/{key[:2]}/{key}.h5" in s3.names()
            store.prove(key)
        assert verify(root / "remote") == []

    def test_names_videos_by_their_urls(self, both):
        root, _ = both
        videos = {row["video"] for row in rows_of(root / "remote", "clips")}
        assert videos == {f"s3://bucket/videos/{number}.mp4" for number in range(3)}
        chosen = caption(
            root / "remote", load_settings(None, GIVEN), videos=["s3://bucket/videos/1.mp4"]
        )
        assert (chosen.counts.found, chosen.counts.cached) == (1, 1)

    def test_notes_a_bad_video_as_a_failure(self, both):
        root, _ = both
        ((video, reason),) = [
            (r["video"], r["reason"]) for r in rows_of(root / "remote", "failures")
        ]
        assert (video, reason) == ("s3://bucket/videos/bad.mp4", "not_a_video")

    def test_fetches_nothing_when_it_is_repeated(self, both, s3):
        _, again = both
        assert (again.counts.cached, again.counts.done) == (3, 0)
        assert [path for method, path in s3.asked if method == "GET" and "/videos/" in path] == []

    def test_leaves_no_secret_behind(self, both, caplog):
        root, _ = both
        for path in root.rglob("*"):
            if path.is_file():
                assert SECRET.encode() not in path.read_bytes(), path

    def test_is_remembered_by_the_cache(self, both, s3):
        root, _ = both
        with pytest.raises(CacheError, match="keeps its features in s3://bucket/features"):
            FeatureStore.create_or_open(root / "remote", "s3://bucket/elsewhere")
        with pytest.raises(CacheError, match="its own folder"):
            FeatureStore.create_or_open(root / "local", "s3://bucket/elsewhere")

    def test_gc_asks_the_store_what_is_gone(self, both, s3, tmp_path, faults):
        root, _ = both
        shutil.copytree(root / "remote", tmp_path / "cache")
        assert collect(tmp_path / "cache") == []
        content = s3.client.get_object(Bucket="bucket", Key="videos/1.mp4")["Body"].read()
        s3.client.delete_object(Bucket="bucket", Key="videos/1.mp4")
        assert [each.video for each in collect(tmp_path / "cache")] == ["s3://bucket/videos/1.mp4"]
        faults.append(Fault("HEAD", "videos/", 10_000, "503 SlowDown"))
        assert collect(tmp_path / "cache") == []
        s3.put("videos/1.mp4", content)


def test_scenes_of_objects_are_those_of_files(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = write_film(tmp_path / "film.mp4")
    s3.put("films/film.mp4", path.read_bytes())
    s3.put("films/none.mp4", b"no video")
    settings = load_settings(None, {**GIVEN, "scenes": True})
    extract([path], tmp_path / "local", settings)
    report = extract(["s3://bucket/films/"], tmp_path / "remote", settings)
    assert (report.counts.done, report.counts.failed) == (5, 1)
    clips = [rows_of(tmp_path / name, "clips") for name in ("local", "remote")]
    keys = [{row["feature_key"] for row in rows} for rows in clips]
    assert keys[0] == keys[1]
    (failure,) = rows_of(tmp_path / "remote", "failures")
    assert failure["video"] == "s3://bucket/films/none.mp4"
    s3.asked.clear()
    again = extract(["s3://bucket/films/"], tmp_path / "remote", settings)
    assert (again.counts.done, again.counts.cached) == (0, 5)
    assert s3.count("GET", "film.mp4") == 0


@pytest.mark.parametrize("url", ["file:///tmp/features", "features", "s3://id:word@bucket/f"])
def test_features_are_kept_only_where_an_object_is_whole_or_absent(tmp_path, url):
    with pytest.raises(ConfigError):
        FeatureStore.create_or_open(tmp_path / "cache", url)
    assert not (tmp_path / "cache").exists()


class TestFeaturesInAStore:
    @pytest.fixture
    def store(self, s3, tmp_path):
        return FeatureStore.create_or_open(tmp_path / "cache", f"s3://bucket/{tmp_path.name}")

    def test_are_absent_where_writing_fails(self, s3, store, faults):
        faults.append(Fault("PUT", ".h5", 10_000, "503 SlowDown"))
        with pytest.raises(CacheError, match="SlowDown"):
            write_clip_features(store, Path("v.mp4"), key_of("a" * 64))
        faults.clear()
        assert store.present() == set()

    def test_are_written_after_faults_that_pass(self, store, faults):
        faults.append(Fault("PUT", ".h5", 2, "503 SlowDown"))
        key = write_clip_features(store, Path("v.mp4"), key_of("a" * 64))
        assert store.present() == {key}
        assert store.read(key).tensors["video"].shape == (2, 4)

    def test_that_are_damaged_move_to_the_quarantine_of_the_cache(self, s3, store):
        key = write_clip_features(store, Path("v.mp4"), key_of("a" * 64))
        name = str(store.path_of(key)).removeprefix("s3://bucket/")
        s3.put(name, b"damaged")
        with pytest.raises(CorruptFeaturesError):
            store.read(key)
        moved = store.quarantine(key, "a test")
        assert moved.read_bytes() == b"damaged"
        assert key not in store

    def test_can_be_packed_anew(self, store):
        key = key_of("a" * 64)
        store.write(key.digest, {"video": torch.randn(4, 64 * 1024)}, key.fields())
        assert compression_of(store, key.digest) == "zstd"
        packed = store.size_bytes(key.digest)
        assert repack(store, key.digest, "none") > packed
        assert compression_of(store, key.digest) == "none"
        assert repack(store, key.digest, "none") is None

    def test_that_are_gone_are_an_error(self, store):
        with pytest.raises(CacheError, match="no such object"):
            store.read("a" * 64)

    def test_are_listed_with_what_does_not_belong(self, s3, store, tmp_path):
        key = write_clip_features(store, Path("v.mp4"), key_of("a" * 64))
        s3.put(f"{tmp_path.name}/ab/notes.txt", b"?")
        assert [*store] == [key]
        assert [path.name for path in store.strangers()] == ["notes.txt"]

    def test_take_those_of_a_folder_by_merging(self, store, tmp_path):
        (tmp_path / "more").mkdir()
        keys = make_cache(tmp_path / "more", 2)
        merged = merge([tmp_path / "more/cache"], tmp_path / "cache")
        assert (merged.files, store.present()) == (2, set(keys))
        assert verify(tmp_path / "cache") == []


def test_a_store_that_cannot_be_reached_is_said_so(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(RemoteError, match="EndpointConnectionError") as caught:
        object_stores.facts(ObjectUrl("s3://bucket/a.mp4"))
    assert caught.value.reason == "fetch_failed"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_retries_log_no_secret(s3, spool, faults, caplog):
    caplog.set_level(logging.INFO, "cogcache")
    faults.append(Fault("GET", "logged.mp4", 1, "503 SlowDown"))
    spool.digest(ObjectUrl.of(s3.put("logged.mp4", b"video")))
    assert SECRET not in caplog.text


# ---- web servers -------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path):
    """Return a function that serves a folder by HTTP, with or without saying when files changed."""
    servers = []

    def serve(hidden: tuple[str, ...]) -> str:
        class Handler(SimpleHTTPRequestHandler):
            def send_header(self, name: str, value: str) -> None:
                if name not in hidden:
                    super().send_header(name, value)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("hidden", [(), ("Last-Modified",), ("Last-Modified", "Content-Length")])
@pytest.mark.parametrize("how", ["named", "listed"])
def test_a_video_of_a_web_server_is_taken_whatever_it_says_of_it(served, tmp_path, hidden, how):
    content = os.urandom(100_000)
    (tmp_path / "a.mp4").write_bytes(content)
    url = f"{served(hidden)}/a.mp4"
    (tmp_path / "list.txt").write_text(url)
    (video,) = find_videos([url if how == "named" else f"@{tmp_path / 'list.txt'}"])
    assert str(video) == url
    digest = hashlib.sha256(content).hexdigest()
    spool = Spool(tmp_path / "spool", 2**20)
    assert spool.digest(video) == digest
    with spool.local(video, digest) as local:
        assert local.read_bytes() == content
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        stat = object_stores.facts(video, anew=True)
        catalog.files.remember_digests([(video, stat, digest)])
        known = catalog.files.digests_of({video: object_stores.facts(video, anew=True)})
    # Of a server that says nothing, nobody knows whether the bytes are still the same.
    assert known == ({} if hidden else {video: digest})


def test_a_question_in_a_url_is_no_pattern(served, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"a")
    url = f"{served(())}/a.mp4?version=2"
    assert [str(video) for video in find_videos([url])] == [url]
