"""What the command line meets: closed and full streams, terminals that go, odd names in logs."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scenes import catalog_of, settings, write_scene
from videos import write_video

from cogcache.catalog.catalog import Catalog
from cogcache.cli.streams import printable_lines
from cogcache.errors import ConfigError
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.stages.runs.status import line, state_of

COGCACHE = [sys.executable, "-m", "cogcache"]
QUICK = ["--max-new-tokens=3", "--quantization=none", "--decode-workers=1"]


@pytest.fixture
def videos(tmp_path) -> Path:
    """A video, and a file that is none, whose name would turn a terminal red."""
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "good.mp4", num_frames=4)
    (folder / "\x1b[31mred\n.mp4").write_bytes(b"")
    return folder


def shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell in which "$@" is the command."""
    command = ["sh", "-c", line, "sh", *COGCACHE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_run_does_both_stages_where_nothing_can_be_printed(videos, tmp_path):
    ended = shell('"$@" >/dev/full', "run", videos, "--cache", tmp_path / "cache", *QUICK)
    assert ended.returncode == 1  # as one video failed
    assert "Traceback" not in ended.stderr
    with catalog_of(tmp_path / "cache") as catalog:
        assert len(catalog.captions.rows()) == 1


def test_closed_streams_are_no_bug_and_no_file_of_the_cache_gets_their_numbers(videos, tmp_path):
    ended = shell('"$@" <&- >&- 2>&-', "extract", videos, "--cache", tmp_path / "cache")
    assert ended.returncode == 1
    seen = "import os; print(*(os.readlink(f'/proc/self/fd/{n}') for n in range(3)), file=out)"
    code = f"""
from cogcache.cli.streams import make_ready
make_ready(verbose=False)
import os, sys
with open({os.fspath(tmp_path / "seen")!r}, "w") as out: {seen}
print("nothing is lost by this"); print("nor by this", file=sys.stderr)
"""
    subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code], check=True)
    assert (tmp_path / "seen").read_text().split() == ["/dev/null"] * 3


def test_a_name_in_the_log_commands_no_terminal_and_keeps_its_line(videos, tmp_path):
    ended = shell('"$@"', "extract", videos, "--cache", tmp_path / "cache")
    assert "?[31mred?.mp4 has no bytes\n" in ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr


def test_a_folder_that_cannot_be_searched_is_a_failure(tmp_path):
    closed = tmp_path / "videos" / "closed"
    closed.mkdir(parents=True)
    write_video(tmp_path / "videos" / "good.mp4", num_frames=1)
    cache = tmp_path / "cache"
    line = 'chmod 0 "$0" && "$@"'
    if os.geteuid() == 0:  # who may read everything otherwise
        line = 'chmod 0 "$0" && setpriv --bounding-set=-all --inh-caps=-all "$@"'
    command = ["sh", "-c", line, closed, *COGCACHE, "extract", closed.parent, "--cache", cache]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    closed.chmod(0o700)
    assert ended.returncode == 1, ended.stderr
    with catalog_of(cache) as catalog:
        (row,) = catalog.failures.rows()
        assert (row["video"], row["reason"]) == (os.fspath(closed), "unreadable")
        assert len(catalog.clips.rows()) == 1


def test_lines_of_a_message_stay_lines():
    assert printable_lines("\x1b[1mwrong\nHint: \x07mend it") == "?[1mwrong\nHint: ?mend it"


def test_a_signal_before_there_is_work_is_told_from_failed_videos(tmp_path):
    os.mkfifo(tmp_path / "list.txt")  # it waits for a writer
    command = [*COGCACHE, "extract", f"@{tmp_path / 'list.txt'}", "--cache", str(tmp_path / "c")]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
        (tmp_path / "list.txt").open("w"),  # returns when it is read
    ):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in said


def test_a_terminal_that_closes_ends_a_run_in_order(tmp_path):
    folder, cache = tmp_path / "videos", tmp_path / "cache"
    folder.mkdir()
    for number in range(60):
        write_video(folder / f"{number}.mp4", num_frames=4 + number)
    command = [*COGCACHE, "run", os.fspath(folder), "--cache", os.fspath(cache), *QUICK]
    process, terminal = pty.fork()
    if not process:
        os.execv(command[0], command)
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s and not [*cache.glob("features/*/*.h5")]:
        time.sleep(0.02)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 128 + signal.SIGHUP
    with catalog_of(cache) as catalog:
        (run,) = catalog.runs.rows()
        assert (run["status"], run["report"]["stopped"]) == ("stopped", "SIGHUP")
        assert 0 < len(catalog.clips.rows()) == run["counts"]["done"] < 60
        assert not catalog.failures.rows()
    assert not [*(cache / "claims").iterdir(), *(cache / "working").iterdir()]


def test_a_run_that_was_killed_is_dead_and_one_at_work_is_running(tmp_path):
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        catalog.runs.start("extract", "tiny", {})
        (run,) = catalog.runs.rows()
    assert state_of(run, []) == "dead"
    assert state_of(run, [{"run": run["run"], "state": "dead"}]) == "dead"
    assert state_of(run, [{"run": run["run"], "state": "at work"}]) == "running"
    assert state_of({**run, "status": "done"}, []) == "done"


def test_a_run_that_an_error_ends_says_so_and_is_not_dead(tmp_path):
    write_scene(tmp_path / "a.mp4", 0)
    with pytest.raises(ConfigError) as caught:
        extract([tmp_path / "a.mp4"], tmp_path / "cache", settings(memory="64MiB"))
    with catalog_of(tmp_path / "cache") as catalog:
        (run,) = catalog.runs.rows()
    assert run["status"] == state_of(run, []) == "error"
    assert run["report"]["stopped"] == caught.value.problem


def test_a_line_of_a_log_file_counts_all_that_is_settled():
    counts = {"found": 200, "cached": 50, "done": 30, "failed": 2, "skipped": 18}
    row = {"command": "extract", "per_s": 0.5, "eta_s": 200.0, "stopping": None, **counts}
    told = "extract: 100 of 200, 20 failed, 30 a minute, 3 min 20 s left"
    assert line(row) == told
    assert line({**row, "stopping": "SIGTERM"}) == f"{told}, stopping: SIGTERM"


@pytest.mark.parametrize(
    "asked", [["ls"], ["failures"], ["search", "shape"], ["status"], ["verify"], ["ls", "runs"]]
)
def test_a_cache_that_cannot_be_written_can_be_read(read_only, asked):
    line = '"$@"'
    if os.geteuid() == 0:  # who may write everything otherwise
        line = 'setpriv --bounding-set=-all --inh-caps=-all "$@"'
    there = sorted(read_only.glob("catalog*"))
    ended = shell(line, *asked, "--cache", read_only)
    assert ended.returncode == 0, ended.stderr
    assert sorted(read_only.glob("catalog*")) == there
    assert not any(path.name.endswith(("-wal", "-shm")) for path in there)


@pytest.fixture(scope="module")
def read_only(tmp_path_factory):
    """A cache of one captioned clip whose folder nobody may write to."""
    folder = tmp_path_factory.mktemp("read only")
    write_scene(folder / "a.mp4", 0, num_frames=20)
    extract([folder / "a.mp4"], folder / "cache", settings())
    caption(folder / "cache", settings(quantization="none", max_new_tokens=2, retry=False))
    for path in (folder / "cache").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (folder / "cache").chmod(0o555)
    yield folder / "cache"
    for path in (folder / "cache", *(folder / "cache").rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
