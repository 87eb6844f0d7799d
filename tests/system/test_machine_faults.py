"""What is the machine's fault ends a run with a message, and no video is blamed for it."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import safe_open
from scenes import settings, write_scene
from videos import write_video

from cogcache.errors import CheckpointError, MachineError, VideoError
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.checkpoints.headers import read_header
from cogcache.system.faults import MOST_IN_A_ROW, DiskWatch, machine_error, raise_if_there
from cogcache.system.processes import bug_of
from cogcache.video.file_state import file_digest
from cogcache.video.reading import probe, read_clip
from tests.system.test_faults import traces

SPREAD = settings(strategy="spread", max_frames=4).sampling
NO_MORE = os.strerror(24)


@contextmanager
def no_more_files():
    """Let this process open no further file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, before[1]))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for number in held:
            os.close(number)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{seed}.mp4", num_frames=12) for seed in range(MOST_IN_A_ROW)]


def cogcache(*arguments, before=()):
    command = [*before, sys.executable, "-m", "cogcache", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("read", [file_digest, probe, lambda path: read_clip(path, SPREAD)])
def test_a_video_is_not_to_blame_that_no_more_files_can_be_opened(read, videos, tmp_path):
    read(videos[0])  # what is imported late
    path = shutil.copy(videos[0], tmp_path / "a.mp4")
    with no_more_files(), pytest.raises(MachineError, match=NO_MORE) as caught:
        read(Path(path))
    assert "ulimit -n" in caught.value.hint
    read(Path(path))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("file", ["config.json", "model-00002-of-00004.safetensors"])
def test_no_file_is_to_be_fetched_anew_because_no_more_files_can_be_opened(file, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(Checkpoint.open("tiny").folder, folder)
    read = {"config.json": lambda: Checkpoint.open(str(folder)).config}
    with no_more_files(), pytest.raises(CheckpointError) as caught:
        read.get(file, lambda: read_header(folder / file))()
    told = machine_error(caught.value)
    assert isinstance(told, MachineError)
    assert "ulimit -n" in str(told)
    assert "anew" not in str(told)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_shard_that_safetensors_calls_missing_and_that_is_there_is_not_to_blame(tmp_path):
    shard = tmp_path / "model.safetensors"
    shutil.copy(Checkpoint.open("tiny").folder / "model-00002-of-00004.safetensors", shard)
    with no_more_files(), pytest.raises(FileNotFoundError) as caught:
        safe_open(shard, framework="pt")
    with pytest.raises(MachineError, match=NO_MORE):
        raise_if_there(caught.value, tmp_path)
    shard.rename(tmp_path / "moved")
    shard.symlink_to("gone")
    raise_if_there(caught.value, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_memory_that_libav_does_not_get_is_told_from_a_damaged_file(tmp_path):
    path = write_video(tmp_path / "4k.mp4", num_frames=4, size=(3840, 2160))
    program = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from cogcache.settings.stage_one import Sampling
        from cogcache.video import read_clip
        from cogcache.video.workers.limits import _data_bytes
        path, rule = Path(sys.argv[1]), Sampling(max_frames=1)
        read_clip(Path(sys.argv[2]), rule, decoder="pyav")
        resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + (40 << 20),) * 2)
        try:
            read_clip(path, rule, decoder="pyav")
        except MemoryError:
            print("memory")
    """)
    small = write_video(tmp_path / "small.mp4", num_frames=4)
    command = [sys.executable, "-c", program, str(path), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "memory\n", done.stderr


def test_what_a_library_says_of_the_machine_is_understood():
    def raised(inner, outer):
        outer.__cause__ = inner
        return outer

    by_words = OSError(f"cannot read model: {NO_MORE} (os error 24)")
    by_cause = raised(OSError(24, NO_MORE), ImportError("no such module"))
    for error in (by_words, by_cause):
        assert "ulimit -n" in machine_error(error).hint
    assert "ulimit -v" in machine_error(RuntimeError("can't start new thread")).hint
    assert machine_error(raised(PermissionError(13, "no"), KeyError("a bug"))) is None
    travelled = pickle.loads(pickle.dumps(bug_of(by_cause))).error
    assert isinstance(travelled, MachineError)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_run_without_files_to_open_ends_with_a_message_and_lists_no_video(tmp_path):
    write_scene(tmp_path / "a.mp4", 0)
    how = ("extract", tmp_path / "a.mp4", "--cache", tmp_path / "cache", "--decode-workers=1")
    done = cogcache(*how, before=("sh", "-c", 'ulimit -n 14; exec "$@"', "sh"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "ulimit -n" in done.stderr
    assert json.loads(cogcache("failures", "--cache", tmp_path / "cache", "--json").stdout) == []


def test_a_disk_that_answers_again_was_there_all_the_time():
    lost = VideoError("disk_error", "no")
    watch, paths = DiskWatch(), [Path(str(number)) for number in range(MOST_IN_A_ROW)]
    assert all(watch.holds(path, path, lost) for path in paths[1:])
    assert not watch.is_gone
    assert [path for path, _ in watch.proven()] == paths[1:]
    assert all(watch.holds(path, path, lost) for path in paths)
    assert watch.is_gone
    assert watch.proven() == []
    assert not watch.holds(paths[0], paths[0], VideoError("no_frames", "nothing to see"))


def run_with_lost(videos, lost, cache):
    paths = [part for path in lost for part in ("-P", path)]
    strace = ["strace", "-f", "-qq", "-o", os.devnull, "--seccomp-bpf", *paths]
    return cogcache(
        "extract", *videos, "--cache", cache, "--decode-workers=1", "--min-free=0",
        before=(*strace, "-e", "inject=openat:error=EIO"),
    )  # fmt: skip


@pytest.mark.slow  # two runs under strace
@pytest.mark.skipif(not traces(), reason="needs strace, and leave to trace")
def test_a_bad_spot_of_a_disk_costs_a_video(videos, tmp_path):
    done = run_with_lost(videos[:2], videos[:1], tmp_path / "cache")
    assert done.returncode == 1, done.stderr
    rows = json.loads(cogcache("failures", "--cache", tmp_path / "cache", "--json").stdout)
    assert [row["reason"] for row in rows] == ["disk_error"]


@pytest.mark.slow  # two runs under strace
@pytest.mark.skipif(not traces(), reason="needs strace, and leave to trace")
def test_a_disk_that_is_gone_ends_the_run_and_costs_no_video(videos, tmp_path):
    done = run_with_lost(videos, videos, tmp_path / "cache")
    assert done.returncode == 1, done.stderr
    assert f"{MOST_IN_A_ROW} videos in a row were lost to the disk" in done.stdout
    assert json.loads(cogcache("failures", "--cache", tmp_path / "cache", "--json").stdout) == []
