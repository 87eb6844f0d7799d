"""Several runs on one cache share its clips; what a dead one held is taken over."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from cogcache.cli import main
from cogcache.store import live
from cogcache.store.claims import Claims, remove_dead_claims
from cogcache.store.live import LiveRun, live_runs
from cogcache.store.store import FeatureStore
from cogcache.system import host as machines
from cogcache.system import scratch

KEY = "ab" * 32
ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    with LiveRun(tmp_path, dict).beating() as run:
        yield run


@pytest.fixture
def other(tmp_path):
    with LiveRun(tmp_path, dict).beating() as run:
        yield run


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A run of a machine with our host name, and of a process that does not exist here."""
    boot = tmp_path / "boot_id"
    boot.write_text("another start of another machine of this name")
    with monkeypatch.context() as patch:
        patch.setattr(machines, "_BOOT", boot)
        patch.setattr(os, "getpid", lambda: 2**22 + 1)
        machines.machine.cache_clear()
        run = LiveRun(tmp_path, dict)
    machines.machine.cache_clear()
    run.path.parent.mkdir(exist_ok=True)
    run.beat()
    return run


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


class TestAClaim:
    def test_is_one_runs_alone(self, run, other):
        assert Claims(run).take(KEY)
        assert not Claims(other).take(KEY)

    def test_may_be_taken_again_by_its_own_run(self, run):
        claims = Claims(run)
        assert claims.take(KEY)
        assert claims.take(KEY)

    def test_is_free_once_given_back(self, run, other):
        claims = Claims(run)
        claims.take(KEY)
        claims.release(KEY)
        assert Claims(other).take(KEY)

    def test_of_a_run_that_ended_may_be_taken(self, tmp_path, run):
        with LiveRun(tmp_path, dict).beating() as gone:
            Claims(gone).take(KEY)
        assert Claims(run).take(KEY)

    def test_of_a_silent_run_elsewhere_may_be_taken_after_a_while(self, run, other, monkeypatch):
        Claims(other).take(KEY)
        age(other.path, live.EXPIRY_S - 5)
        assert not Claims(run).take(KEY)
        age(other.path, 10)
        assert Claims(run).take(KEY)

    def test_that_was_taken_over_is_not_free_for_a_third(self, tmp_path, run, other):
        with LiveRun(tmp_path, dict).beating() as gone:
            Claims(gone).take(KEY)
        assert Claims(run).take(KEY)
        assert not Claims(other).take(KEY)

    def test_is_won_by_one_of_many_that_try_at_once(self, tmp_path, run):
        gone = LiveRun(tmp_path, dict)
        with gone.beating():
            for number in range(50):
                Claims(gone).take(f"{number:064x}")
        rivals = [Claims(run), *(Claims(LiveRun(tmp_path, dict)) for _ in range(3))]
        for rival in rivals[1:]:
            rival._run.beat()
        won: list[str] = []

        def take_all(claims: Claims) -> None:
            won.extend(key for key in (f"{n:064x}" for n in range(50)) if claims.take(key))

        threads = [threading.Thread(target=take_all, args=(rival,)) for rival in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == [f"{n:064x}" for n in range(50)]

    def test_of_a_dead_run_is_swept_and_that_of_a_live_one_stays(self, tmp_path, run):
        with LiveRun(tmp_path, dict).beating() as gone:
            Claims(gone).take(KEY)
        Claims(run).take("cd" * 32)
        assert [path.name for path in remove_dead_claims(tmp_path)] == [f"{KEY}.1"]
        assert [path.name for path in (tmp_path / "claims").iterdir()] == [f"{'cd' * 32}.1"]


class TestAnotherMachine:
    """Its process ids mean nothing here, and its clock need not agree with ours."""

    def test_of_the_same_name_is_told_apart(self, elsewhere):
        name, here = elsewhere.name.split(".")[0], machines.machine()
        assert name != here
        assert name.split("-")[0] == here.split("-")[0]

    def test_keeps_its_claims_though_no_such_process_is_here(self, elsewhere, run):
        Claims(elsewhere).take(KEY)
        remove_dead_claims(run.root)
        assert not Claims(run).take(KEY)

    def test_loses_its_claims_after_a_silence(self, elsewhere, run):
        Claims(elsewhere).take(KEY)
        age(elsewhere.path, live.EXPIRY_S + 1)
        assert Claims(run).take(KEY)

    @pytest.mark.parametrize("hours", [-30, 30])
    def test_may_have_a_clock_of_its_own(self, elsewhere, run, monkeypatch, hours):
        Claims(elsewhere).take(KEY)
        now_s = time.time() + 3600 * hours
        monkeypatch.setattr(time, "time", lambda: now_s)
        assert not Claims(run).take(KEY)
        assert "dead" not in {row["state"] for row in live_runs(run.root)}

    def test_does_not_take_our_half_written_files_for_litter(self, elsewhere, tmp_path):
        partial = tmp_path / f".a.h5.{elsewhere.name.rsplit('.', 1)[0]}.0.partial"
        partial.write_bytes(b"half")
        assert scratch.remove_dead([tmp_path]) == []
        age(partial, 25 * 3600)
        assert scratch.remove_dead([tmp_path]) == [partial]


class TestWhatSomebodyDidToTheFiles:
    """Nothing is lost by it, and nobody waits for what will not come."""

    @pytest.mark.parametrize("content", [b"", b"\xff\x00/", b"notes", b"a.b.c"])
    def test_a_claim_that_names_no_run_may_be_taken(self, run, content):
        path = run.root / "claims" / f"{KEY}.1"
        claims = Claims(run)
        path.write_bytes(content)
        age(path, -3600)  # by a clock that has been set back since
        assert claims.is_free(KEY)
        assert claims.take(KEY)

    def test_a_folder_in_the_place_of_a_claim_is_none(self, run):
        (run.root / "claims" / f"{KEY}.1").mkdir(parents=True)
        assert remove_dead_claims(run.root) == []
        assert Claims(run).take(KEY)

    @pytest.mark.parametrize("folder", ["claims", "working"])
    def test_a_folder_that_is_gone_is_made_again(self, run, other, folder):
        claims = Claims(run)
        assert claims.take("cd" * 32)
        shutil.rmtree(run.root / folder)
        run.beat()
        assert claims.take(KEY)
        assert not Claims(other).take(KEY)
        claims.release_all()
        assert Claims(other).take(KEY)

    def test_files_that_no_run_has_written_are_no_runs(self, run):
        for name in ("a.b.c.json", "a.b.c.d.json", f"{run.name}.json~", "list.json", "row.json"):
            (run.root / "working" / name).write_text("[]" if name == "list.json" else "{}")
        assert [row["pid"] for row in live_runs(run.root)] == [os.getpid()]
        remove_dead_claims(run.root)
        assert run.path.exists()

    def test_of_a_dead_run_whose_clock_was_ahead_may_be_taken(self, elsewhere, run):
        Claims(elsewhere).take(KEY)
        age(elsewhere.path, -3600)
        assert Claims(run).take(KEY)

    def test_a_living_run_keeps_its_claims_when_the_clock_was_set(self, run, other):
        claims = Claims(run)
        claims.take(KEY)
        for seconds in (3600, -3600):
            age(run.path, seconds)
            run.beat()
            assert not Claims(other).take(KEY)
        remove_dead_claims(other.root)
        assert not Claims(other).take(KEY)


class TestALiveRun:
    def test_is_shown_with_what_it_says_of_itself(self, tmp_path):
        with LiveRun(tmp_path, lambda: {"done": 3}).beating():
            (row,) = live_runs(tmp_path)
        assert (row["done"], row["state"], row["pid"]) == (3, "at work", os.getpid())

    def test_leaves_nothing_when_it_ends(self, tmp_path):
        with LiveRun(tmp_path, dict).beating():
            pass
        assert not [*(tmp_path / "working").iterdir()]

    def test_beats(self, tmp_path, monkeypatch):
        monkeypatch.setattr(live, "BEAT_S", 0.02)
        beats = []
        with LiveRun(tmp_path, lambda: {"n": beats.append(1)}).beating():
            time.sleep(0.3)
        assert len(beats) > 3

    def test_that_writes_its_first_word_is_not_swept_away(self, tmp_path):
        begins = LiveRun(tmp_path, dict)
        begins.path.parent.mkdir()
        begins.path.with_suffix(".new").write_text("{")
        remove_dead_claims(tmp_path)
        assert begins.path.with_suffix(".new").exists()
        age(begins.path.with_suffix(".new"), 10)
        remove_dead_claims(tmp_path)
        assert not begins.path.with_suffix(".new").exists()

    def test_is_listed_by_status_with_rate_and_rest(self, tmp_path):
        FeatureStore.create_or_open(tmp_path / "cache")
        facts = {"command": "extract", "found": 10, "cached": 2, "done": 3, "failed": 1}
        facts |= {"skipped": 0, "per_s": 0.5, "eta_s": 8.0, "host_bytes": 2**30, "stopping": None}
        with LiveRun(tmp_path / "cache", lambda: facts).beating():
            options = ["status", "--cache", str(tmp_path / "cache")]
            shown = CliRunner().invoke(main, options).output
            (row,) = json.loads(CliRunner().invoke(main, [*options, "--json"]).output)
        for text in ("at work", "6 of 10", "30 a minute", "8 s", "1 GiB"):
            assert text in shown
        assert (row["eta_s"], row["state"]) == (8.0, "at work")

    def test_that_was_killed_is_shown_as_dead(self, tmp_path):
        program = (
            "import os, sys; from pathlib import Path; from cogcache.store.live import LiveRun\n"
            "with LiveRun(Path(sys.argv[1]), dict).beating(): os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
        assert [row["state"] for row in live_runs(tmp_path)] == ["dead"]


@pytest.fixture(scope="module", params=["extract", pytest.param("caption", marks=pytest.mark.slow)])
def shared(request):
    """What runs said that worked together; one process forks them all."""
    command = [sys.executable, "-m", "benchmarks.sharing", "--clips=24", f"--stage={request.param}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_runs_at_once_make_all_of_it_once_and_take_over_what_a_dead_one_held(shared):
    assert shared.returncode == 0, shared.stdout + shared.stderr


def test_runs_at_once_share_the_work(shared):
    found = re.findall(r"^\d runs of \w+: made \[(.*)\]", shared.stdout, re.MULTILINE)
    assert len(found) == 2
    for counts in found:
        assert sum(int(done) > 0 for done in counts.split(", ")) > 1


def test_what_a_run_was_writing_when_it_was_killed_is_removed_at_once(tmp_path):
    (tmp_path / "working").mkdir()
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    names = {pid: f"{machines.machine()}.{pid}.{'0' * 32}" for pid in (ended.stdout.strip(), 1)}
    for name in names.values():
        (tmp_path / "working" / f"{name}.new").write_text("")
    remove_dead_claims(tmp_path)
    assert [path.stem for path in (tmp_path / "working").iterdir()] == [names[1]]
