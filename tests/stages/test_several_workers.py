"""The stages by several workers on real clips: what one process makes, byte for byte."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from clusters import ROOT, cluster_of
from films import write_film
from scenes import catalog_of, settings, write_scene

from cogcache.errors import ConfigError
from cogcache.settings.settings import load_settings
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract

NUM_CLIPS = 6


@dataclass
class Plain:
    """Clips, one of them no video, and what one process makes of them."""

    videos: Path
    cache: Path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    made = Plain(folder / "videos", folder / "cache")
    made.videos.mkdir()
    for number in range(NUM_CLIPS):
        write_scene(made.videos / f"{number}.mp4", number)
    (made.videos / "text.mp4").write_text("this is no video")
    extract([made.videos], made.cache, settings())
    shutil.copytree(made.cache, folder / "uncaptioned")
    caption(made.cache, settings())
    return made


def features(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("features/??/*.h5")}


def captions(cache: Path) -> list[tuple[object, ...]]:
    with catalog_of(cache) as catalog:
        rows = catalog.captions.rows()
    names = ("caption_key", "video", "prompt", "caption", "flags", "num_tokens")
    return sorted(tuple(str(row[name]) for name in names) for row in rows)


def failures(cache: Path) -> list[tuple[str, str]]:
    with catalog_of(cache) as catalog:
        return [(row["video"], row["reason"]) for row in catalog.failures.rows()]


def cogcache(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "cogcache", *map(str, arguments)]


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths}


def test_captions_of_two_devices_are_those_of_one_process(plain, tmp_path):
    cache = shutil.copytree(plain.cache.parent / "uncaptioned", tmp_path / "cache")
    report = caption(cache, settings(devices="cpu,cpu"))
    assert report.counts.done == NUM_CLIPS
    assert captions(cache) == captions(plain.cache)
    assert report.planned is not None
    assert report.peak.host_bytes > report.base_bytes > 0
    assert "4: 21 of 22 linear layers" in str(report.quantization)


@pytest.mark.slow
def test_features_of_a_ray_cluster_are_those_of_one_process(plain, tmp_path):
    cache = tmp_path / "cache"
    with cluster_of(nodes=2) as cluster:
        command = cogcache("extract", plain.videos, "--cache", cache, "--engine", "ray")
        command += ["--address", cluster.address, "--workers", "1", "--decode-workers", "1"]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
    assert done.returncode == 1, done.stderr
    assert features(cache) == features(plain.cache)
    assert failures(cache) == failures(plain.cache)
    with catalog_of(cache) as catalog:
        assert len(catalog.clips.rows()) == NUM_CLIPS
    # What Ray itself has to say stays in its logs.
    assert done.stdout.startswith(f"extract: {NUM_CLIPS} clips made, 0 there already, 1 failed")
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("extract: "))
    assert "text.mp4" in line


@pytest.mark.slow  # two runs, one with a process that loads a half
def test_scenes_of_several_workers_are_those_of_one_process(tmp_path):
    films = [write_film(tmp_path / f"{seed}.mp4", seed=seed) for seed in range(2)]
    asked = {"scenes": True, "max_frames": 2}
    extract(films, tmp_path / "plain", settings(**asked))
    report = extract(films, tmp_path / "several", settings(**asked, devices="cpu,cpu"))
    assert report.counts.done == report.counts.found == 10
    assert features(tmp_path / "several") == features(tmp_path / "plain")
    again = extract(films, tmp_path / "several", settings(**asked, devices="cpu,cpu"))
    assert (again.counts.done, again.counts.cached) == (0, 10)


def test_a_signal_ends_a_run_with_workers_in_order(plain, tmp_path):
    cache = tmp_path / "cache"
    command = cogcache("extract", plain.videos, "--cache", cache, "--devices", "cpu")
    process = subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 100
    while not [*cache.glob("claims/*")] and time.monotonic() < end:  # until clips are taken up
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all get it
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130, message
    assert "finishing what is in hand" in message
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not [*(cache / "claims").iterdir()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": "2"}, "workers has no effect unless engine is ray"),
        ({"address": "10.0.0.1:6379"}, "address has no effect unless engine is ray"),
        ({"gpus_per_worker": 0.5}, "gpus_per_worker has no effect unless engine is ray"),
        ({"engine": "ray", "devices": "cpu"}, "devices is for engine local"),
        ({"engine": "ray", "workers": "none"}, "workers must be auto or a whole number"),
        ({"devices": "cuda:0;cuda:1"}, "'cuda:0;cuda:1' is no device"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(None, given)


def test_a_card_cannot_be_named_on_ray(tmp_path):
    write_scene(tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match="each worker gets one of its own"):
        extract([tmp_path / "a.mp4"], tmp_path / "cache", settings(engine="ray", device="cuda:1"))


def test_ray_is_not_imported_unless_it_is_asked_for():
    program = (
        "import sys, cogcache.stages.extract, cogcache.cli;"
        "import cogcache.stages.distributed.launch, cogcache.stages.distributed.ray_workers;"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], env=environment()).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_clips_survive_lost_nodes_and_workers():
    """By both engines and stages: benchmarks/workers.py holds and prints the counts."""
    command = [sys.executable, "-m", "benchmarks.workers", "--clips=200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
