"""The command line as a newcomer meets it: processes, exit statuses, listings."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from scenes import catalog_of, partial_files, write_scene

from cogcache.cli import BUG, main
from cogcache.store.store import FeatureStore
from cogcache.units import MIB, format_bytes

COLOR = "color=What color is the shape?"
WITHOUT_TORCH = """
import sys
from cogcache.cli import main
try:
    main(sys.argv[1:])
finally:
    assert "cogcache.catalog.catalog" in sys.modules
    assert not {"torch", "transformers"} & set(sys.modules), "torch was loaded"
"""


def cogcache(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command as a process."""
    command = [sys.executable, "-m", "cogcache", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def here(*arguments: object) -> Result:
    """Run a command in this process, wide enough for the paths of a test."""
    return CliRunner(env={"COLUMNS": "240"}).invoke(main, [str(each) for each in arguments])


def listed(*arguments: object) -> list[dict]:
    """Return what a listing gives as JSON."""
    result = here(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Folder, cache and outcome of `cogcache run` over two good videos and a bad one."""
    folder = tmp_path_factory.mktemp("cli")
    videos, cache = folder / "videos", folder / "cache"
    videos.mkdir()
    truths = [write_scene(videos / f"{seed}.mp4", seed).answer("color") for seed in (0, 1)]
    (videos / "bad.mp4").write_text("this is no video")
    done = cogcache("run", videos, f"--cache={cache}", "--decode-workers=1", "--prompt", COLOR)
    return videos, cache, done, truths


# ---- run ----------------------------------------------------------------------------------------


def test_run_captions_the_good_and_ends_with_1_where_some_failed(ran):
    _, cache, done, truths = ran
    assert done.returncode == 1
    assert [row["caption"] for row in listed("ls", f"--cache={cache}")] == truths


def test_run_prints_what_both_stages_did_and_no_traceback(ran):
    _, _, done, _ = ran
    assert "extract: 2 clips made, 0 there already, 1 failed" in done.stdout
    assert "caption: 2 captions made, 0 there already" in done.stdout
    assert "planned" in done.stdout
    assert "bad.mp4 is no video" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_ends_with_the_peaks_of_both_stages_in_one_table_and_what_to_type_next(ran):
    _, cache, done, _ = ran
    *_, header, _, one, two, failed, after = done.stdout.rstrip().splitlines()
    assert failed == f"  what failed, and why: cogcache failures --cache {cache}"
    assert after == f"  next: cogcache ls --cache {cache}"
    names = ("planned_peak_bytes", "measured_peak_bytes")
    assert header.split() == ["stage", "before_loading_bytes", *names]
    for line, run in zip((one, two), listed("ls", "runs", f"--cache={cache}"), strict=True):
        stage, _, *peaks = re.split(r"\s{2,}", line)
        assert stage == run["command"]
        assert peaks == [format_bytes(run[name]) for name in names]


def test_the_split_of_the_time_names_imports_and_leaves_little_out(ran):
    _, cache, _, _ = ran
    for run in listed("ls", "runs", f"--cache={cache}")[:2]:
        assert run["split"]["import"] > 0
        assert run["split"]["load"] > 0
        assert sum(run["split"].values()) > 0.7 * run["report"]["total_s"], run["split"]


def spent_s() -> float:
    """Processor time of all processes that this one has waited for, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_second_run_does_no_work_says_so_and_takes_under_3_seconds(ran):
    videos, cache, _, _ = ran
    # Processor time: on a machine that does nothing else it is also what the clock says.
    before_s = spent_s()
    how = [f"--cache={cache}", "--decode-workers=1", "--prompt", COLOR, "--json"]
    done = cogcache("run", videos, *how)
    assert spent_s() - before_s < 3
    told = json.loads(done.stdout)
    assert {*told} == {"exit_status", "extract", "caption"}
    assert told["exit_status"] == done.returncode == 0  # what failed before is no failure now
    counts = [(told[stage]["done"], told[stage]["cached"]) for stage in ("extract", "caption")]
    assert counts == [(0, 2), (0, 2)]
    assert told["extract"]["skipped"] == 1


def test_what_a_stage_imports_late_is_no_part_of_what_its_weights_take(ran):
    """Where digests are remembered, nothing of the model is imported before it is loaded."""
    videos, cache, _, _ = ran
    prompt = "count=How many shapes are there?"
    cogcache("caption", videos, f"--cache={cache}", "--prompt", prompt)
    run = listed("ls", "runs", f"--cache={cache}")[-1]
    assert 0 < run["measured_peak_bytes"] - run["planned_peak_bytes"] < 150 * MIB


@pytest.mark.parametrize("command", ["extract", "caption"])
def test_a_stage_without_work_loads_no_torch(ran, command):
    videos, cache, _, _ = ran
    arguments = [command, str(videos), f"--cache={cache}"]
    arguments += ["--prompt", COLOR] if command == "caption" else []
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "torch was loaded" not in done.stderr
    assert "0 c" in done.stdout
    assert "Traceback" not in done.stderr


def test_videos_that_were_moved_are_found_to_be_there_without_torch(ran, tmp_path):
    videos, cache, _, _ = ran
    shutil.copytree(videos, tmp_path / "moved", ignore=shutil.ignore_patterns("bad.mp4"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "extract", tmp_path / "moved", f"--cache={cache}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "extract: 0 clips made, 2 there already" in done.stdout


def until(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until something is there, for as long as the process runs."""
    while not found():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_a_signal_to_run_ends_it_in_order_and_the_next_run_does_the_rest(tmp_path):
    cache = tmp_path / "cache"
    write_scene(tmp_path / "a.mp4", 0, num_frames=56)
    # Many short clips one by one, so that there is time to interrupt.
    command = ["run", tmp_path / "a.mp4", f"--cache={cache}", "--segment=0.125"]
    command += ["--frames-per-batch=1", "--decode-workers=1", "--max-new-tokens=2", "--no-retry"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cogcache", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: cache.is_dir() and len(FeatureStore(cache)) > 1, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert "stopped early (SIGINT)" in output
    assert "caption:" not in output
    assert "Traceback" not in errors
    assert partial_files(cache) == []
    with catalog_of(cache) as catalog:
        made = len(catalog.clips.rows())
    assert 0 < made == len(FeatureStore(cache)) < 56
    again = here("extract", *command[1:6])
    assert f"{56 - made} clips made, {made} there already" in again.output


def test_run_captions_nothing_where_stage_one_was_misused(tmp_path):
    done = cogcache("run", tmp_path / "none.mp4", f"--cache={tmp_path / 'cache'}")
    assert done.returncode == 2
    assert "no such file" in done.stderr
    assert "caption" not in done.stdout


# ---- what names videos and prompts --------------------------------------------------------------


@pytest.mark.parametrize("way", ["file", "folder", "glob", "list"])
def test_videos_are_named_in_every_way(ran, tmp_path, way):
    videos, cache, _, _ = ran
    (tmp_path / "list.txt").write_text(f"# two videos\n{videos / '0.mp4'}\n{videos / '1.mp4'}\n")
    named, found = {
        "file": (videos / "1.mp4", 1),
        "folder": (videos, 2),
        "glob": (videos / "[01].mp4", 2),
        "list": (f"@{tmp_path / 'list.txt'}", 2),
    }[way]
    result = here("extract", named, f"--cache={cache}")
    assert f"0 clips made, {found} there already" in result.output


def test_prompts_come_from_a_file_too(ran, tmp_path):
    _, cache, _, _ = ran
    file = tmp_path / "prompts.toml"
    file.write_text('[prompts]\ncolor = "What color is the shape?"\nshape = "What shape is it?"\n')
    result = here("caption", f"--cache={cache}", "--prompts", file, "--quantization=none")
    assert result.exit_code == 0, result.output
    # Not there already: captions of the unquantised model are others.
    assert "4 captions made" in result.output


MISUSE = {
    "no videos": (["extract"], "Missing argument"),
    "no cache": (["extract", "a.mp4"], "Missing option '--cache'"),
    "no such video": (["extract", "gone.mp4", "--cache=c"], "gone.mp4: no such file"),
    "no such cache": (["caption", "--cache=c"], "`cogcache extract`"),
    "no such option": (["extract", "a.mp4", "--cache=c", "--max-frame=3"], "--max-frames"),
    "no such model": (["extract", ".", "--cache=c", "--model=no/such"], "no/such"),
    "a clip that ends first": (["extract", "a.mp4", "--cache=c", "--clip=20:10"], "ends before"),
    "a clip that is none": (["extract", "a.mp4", "--cache=c", "--clip=abc"], "START:END"),
    "two prompts of a name": (
        ["caption", "--cache=c", "--prompt=a=One?", "--prompt=a=Two?"],
        "two prompts are named 'a'",
    ),
    "a prompt of two names": (
        ["caption", "--cache=c", "--prompt=a=One?", "--prompt=b=One?"],
        "'a' and 'b' are the same prompt",
    ),
    "an empty prompt": (["caption", "--cache=c", "--prompt= "], "holds no text"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_ends_with_2_and_says_what_to_do(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scene(tmp_path / "a.mp4", 0)
    arguments, message = MISUSE[case]
    result = here(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_key_in_a_file_names_the_nearest(toml, tmp_path):
    result = here("caption", f"--cache={tmp_path}", "--config", toml("[sampling]\nmax_frame = 3\n"))
    assert result.exit_code == 2
    assert "max_frames" in result.stderr


def test_a_bug_keeps_its_traceback_and_has_a_status_of_its_own(ran, monkeypatch):
    def broken(*_: object, **__: object) -> str:
        raise RuntimeError("json is broken")

    monkeypatch.setattr("json.dumps", broken)
    result = here("ls", f"--cache={ran[1]}", "--json")
    assert result.exit_code == BUG
    assert "Traceback" in result.stderr
    assert "json is broken" in result.stderr


# ---- listings -----------------------------------------------------------------------------------


def test_listings_are_one_json_array_with_the_same_names_everywhere(ran):
    _, cache, _, _ = ran
    place = {"video", "start_s", "end_s", "feature_key", "run"}
    rows = {what: listed("ls", what, f"--cache={cache}") for what in ("captions", "clips", "runs")}
    rows["failures"] = listed("failures", f"--cache={cache}")
    for what in ("captions", "clips", "failures"):
        assert rows[what], what
        assert place <= set(rows[what][0]), what
    assert {"prompt", "prompt_name", "caption", "model", "flags"} <= set(rows["captions"][0])
    assert {"model", "run", "planned_peak_bytes", "measured_peak_bytes"} <= set(rows["runs"][0])
    assert rows["runs"][0]["measured_peak_bytes"] > 0


def test_a_listing_of_nothing_is_an_empty_array(tmp_path):
    (tmp_path / "a.mp4").touch()
    here("extract", tmp_path / "a.mp4", f"--cache={tmp_path / 'cache'}")
    assert listed("ls", f"--cache={tmp_path / 'cache'}") == []
    assert "nothing to list" in here("ls", f"--cache={tmp_path / 'cache'}").output


def test_models_are_listed_as_json():
    families = listed("models")
    assert "cogvlm2" in {row.get("family", row.get("name")) for row in families}


def test_bytes_are_listed_with_units_for_readers(ran):
    table = here("ls", "runs", f"--cache={ran[1]}").output
    assert "MiB" in table
    assert "KiB" in here("ls", "clips", f"--cache={ran[1]}").output


def test_failures_are_listed_with_reason_and_message(ran):
    table = here("failures", f"--cache={ran[1]}").output
    assert "not_a_video" in table
    assert "bad.mp4" in table


def test_a_reader_that_closes_early_meets_no_traceback(ran):
    listing = f"{sys.executable} -m cogcache ls --json --cache={ran[1]}"
    done = subprocess.run(
        ["sh", "-c", f"{listing} | true"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
