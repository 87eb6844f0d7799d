from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import psutil
import pytest
import worker_tasks as tasks
from processes import child_processes

from cogcache.errors import CogcacheError, VideoError
from cogcache.units import MIB
from cogcache.video.workers.decode_worker import DecodeWorker
from cogcache.video.workers.limits import WorkerLimits
from cogcache.video.workers.pool import map_unordered

HARMLESS = list(range(6))
A_MINUTE = WorkerLimits(60.0)


def run(jobs, *, task=tasks.answer, workers=2, ahead=4, limits=None, **more):
    limits = limits or A_MINUTE
    return dict(map_unordered(task, jobs, workers=workers, limits=limits, ahead=ahead, **more))


def wait_until(condition, seconds=20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def gone(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_every_job_comes_back_with_its_result():
    assert run(range(50), task=tasks.double) == {number: 2 * number for number in range(50)}


def test_a_source_without_a_job_just_now_is_asked_again_and_the_caller_goes_on():
    jobs = iter([1, None, 2, None, None, 3])
    results = [*map_unordered(tasks.double, jobs, workers=1, limits=A_MINUTE, ahead=1)]
    assert [each for each in results if each is not None] == [(1, 2), (2, 4), (3, 6)]
    assert results.count(None) == 1


def test_a_job_in_hand_comes_back_while_the_source_has_no_other():
    came: list[object] = []

    def jobs():
        yield 1
        while not came:
            yield None

    for each in map_unordered(tasks.double, jobs(), workers=1, limits=A_MINUTE, ahead=2):
        came += [] if each is None else [each]
    assert came == [(1, 2)]


def test_work_is_shared_by_the_workers():
    assert len(set(run(range(200), task=tasks.process_id, ahead=50).values())) == 2


@pytest.mark.parametrize(
    ("fatal", "ending"),
    [("exit", "status 3"), ("kill", "SIGKILL"), ("segfault", "SIGSEGV")],
)
def test_a_crash_costs_only_its_job(fatal, ending):
    outcome = run([0, 1, fatal, *HARMLESS[2:]])
    error = outcome.pop(fatal)
    assert isinstance(error, VideoError)
    assert error.reason == "decoder_crashed"
    assert ending in error.problem
    assert outcome == {number: number for number in HARMLESS}


def test_a_worker_killed_while_it_sends_costs_only_its_job():
    outcome = run(["killed while sending", *HARMLESS])
    assert outcome.pop("killed while sending").reason == "decoder_crashed"
    assert outcome == {number: number for number in HARMLESS}


def test_a_hang_costs_only_its_job():
    outcome = run([0, "hang", *HARMLESS[1:]], limits=WorkerLimits(3.0))
    error = outcome.pop("hang")
    assert error.reason == "timeout"
    assert "3 s" in error.problem
    assert outcome == {number: number for number in HARMLESS}


def test_a_job_that_takes_too_much_memory_costs_only_itself():
    limits = replace(A_MINUTE, memory_bytes=300 * MIB)
    outcome = run([0, "swallow", *HARMLESS[1:]], limits=limits)
    error = outcome.pop("swallow")
    assert error.reason == "decode_memory"
    assert "MiB" in error.problem
    assert outcome == {number: number for number in HARMLESS}


def test_memory_is_bounded_by_the_system_too():
    limits = replace(A_MINUTE, memory_bytes=300 * MIB)
    assert run(["ask for much"], limits=limits)["ask for much"].reason == "decode_memory"


@pytest.mark.skipif(sys.platform != "linux", reason="the bound is measured as Linux does")
def test_a_worker_whose_parent_is_held_up_is_stopped_by_the_system(monkeypatch):
    monkeypatch.setattr(DecodeWorker, "_look", lambda _worker: 0)
    limits = replace(A_MINUTE, memory_bytes=300 * MIB)
    assert run(["swallow"], limits=limits)["swallow"].reason == "decode_memory"


def test_a_job_that_takes_too_much_of_the_processor_costs_only_itself():
    outcome = run([0, "burn", *HARMLESS[1:]])
    error = outcome.pop("burn")
    assert error.reason == "timeout"
    assert "of the processor" in error.problem
    assert outcome == {number: number for number in HARMLESS}


@pytest.mark.parametrize(
    ("limits", "most_jobs"),
    [(replace(A_MINUTE, jobs=3), 3), (replace(A_MINUTE, growth_bytes=70 * MIB), 4)],
    ids=["by their jobs", "by their growth"],
)
def test_workers_are_replaced_before_they_have_leaked_much(limits, most_jobs):
    done_by = Counter(run(range(9), task=tasks.leak, workers=1, limits=limits).values())
    assert len(done_by) == -(-9 // most_jobs)
    assert max(done_by.values()) == most_jobs


def test_a_worker_killed_while_idle_costs_no_job():
    results = map_unordered(tasks.process_id, range(3), workers=1, limits=A_MINUTE, ahead=1)
    with closing(results):
        _, first = next(results)
        os.kill(first, signal.SIGKILL)
        assert wait_until(lambda: gone(first))
        _, second = next(results)
    assert isinstance(second, int)
    assert second != first


def test_a_clip_error_is_handed_back_whole():
    error = run(["clip error"])["clip error"]
    assert (error.reason, error.problem, error.hint) == (
        "no_frames",
        "nothing to see",
        "look elsewhere",
    )


def test_memory_that_runs_out_is_the_clips_fault():
    assert run(["memory"])["memory"].reason == "decode_memory"


@pytest.mark.parametrize(
    ("job", "kind"), [("bug", KeyError), ("odd bug", RuntimeError), ("no pickle", TypeError)]
)
def test_a_bug_is_raised_with_the_workers_traceback(job, kind):
    with pytest.raises(kind) as raised:
        run([0, job])
    assert "Traceback" in "".join(raised.value.__notes__)


def test_a_job_that_cannot_travel_is_a_bug():
    with pytest.raises((TypeError, AttributeError), match="pickle"):
        run([lambda: 0])


def test_a_bug_in_the_initializer_is_raised():
    with pytest.raises(LookupError, match="no model here"):
        run([0], initializer=tasks.fail_to_start)


def test_a_worker_that_dies_at_its_start_is_not_the_clips_fault():
    with pytest.raises(CogcacheError, match="could not be started: ended with status 7"):
        run([0], initializer=tasks.exit_at_start)


def test_nothing_is_started_for_no_jobs():
    assert run([]) == {}
    assert child_processes() == []


def test_jobs_are_taken_only_as_far_ahead_as_asked():
    taken = []

    def jobs() -> Iterator[int]:
        for number in count():
            taken.append(number)
            yield number

    with closing(
        map_unordered(tasks.double, jobs(), workers=2, limits=A_MINUTE, ahead=3)
    ) as results:
        for num_done, _ in enumerate(islice(results, 10), start=1):
            assert len(taken) == num_done + 3


def test_workers_go_on_while_the_caller_works_on_a_result(tmp_path):
    jobs = [tmp_path / str(number) for number in range(2)]
    with closing(map_unordered(tasks.touch, jobs, workers=1, limits=A_MINUTE, ahead=1)) as results:
        next(results)
        end_s = time.monotonic() + 20
        while not jobs[1].exists():
            assert time.monotonic() < end_s
            time.sleep(0.01)


def test_closing_early_leaves_no_process():
    jobs = ["hang" if number == 1 else number for number in range(100)]
    results = map_unordered(tasks.answer, jobs, workers=2, limits=A_MINUTE, ahead=10)
    next(results)
    started = time.monotonic()
    results.close()
    assert child_processes() == []
    assert time.monotonic() - started < 5


def test_closing_before_anything_is_asked_for_leaves_no_process():
    results = map_unordered(tasks.double, range(4), workers=2, limits=A_MINUTE, ahead=2)
    assert wait_until(child_processes)
    results.close()
    assert child_processes() == []


def test_jobs_that_cannot_be_told_leave_no_process():
    def jobs() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more") as held:
        map_unordered(tasks.double, jobs(), workers=2, limits=A_MINUTE, ahead=2)
    assert held.tb is not None
    assert child_processes() == []


def test_the_end_leaves_no_process():
    run(range(3))
    assert child_processes() == []


def test_workers_take_no_notice_of_signals_to_end():
    assert run(["signals"]) == {"signals": "lived on"}


PROGRAM = """
    import sys
    from pathlib import Path
    import worker_tasks as tasks
    from cogcache.video.workers.limits import WorkerLimits
    from cogcache.video.workers.pool import map_unordered
    if __name__ == "__main__":
        folder = Path(sys.argv[1])
        results = map_unordered(
            tasks.{task}, [folder, folder], workers=2, limits=WorkerLimits(600.0), ahead=2
        )
        {body}
"""


@pytest.fixture
def program(tmp_path):
    """Return a function that starts a program of its own which uses workers."""
    started = []

    def start(task: str, body: str) -> subprocess.Popen[str]:
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(PROGRAM.format(task=task, body=body)))
        (tmp_path / "ids").mkdir()
        support, root = Path(__file__).parents[1] / "support", Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-W", "error", path, tmp_path / "ids"],
            env={**os.environ, "PYTHONPATH": f"{support}{os.pathsep}{root}"},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def worker_ids(tmp_path: Path) -> list[int]:
    return [int(path.name) for path in (tmp_path / "ids").iterdir()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_parent_that_is_killed(program, tmp_path, number):
    parent = program("write_pid_and_sleep", "list(results)")
    assert wait_until(lambda: len(worker_ids(tmp_path)) == 2)
    parent.send_signal(number)
    parent.wait(10)
    assert wait_until(lambda: all(map(gone, worker_ids(tmp_path))))


def test_ctrl_c_is_seen_by_the_parent_alone(program, tmp_path):
    parent = program("write_pid_and_sleep", "list(results)")
    assert wait_until(lambda: len(worker_ids(tmp_path)) == 2)
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=10)
    assert errors.count("KeyboardInterrupt") == 1
    assert wait_until(lambda: all(map(gone, worker_ids(tmp_path))))


def test_a_program_that_never_closes_its_workers_still_ends(program):
    parent = program("process_id", "sys.kept = results; next(results)")
    _, errors = parent.communicate(timeout=20)
    assert (parent.returncode, errors) == (0, "")


@pytest.mark.timeout(60)
def test_closing_ends_however_long_a_worker_takes_to_close(monkeypatch):
    close = DecodeWorker.close

    def held_up(worker: DecodeWorker) -> None:
        """As on a busy machine: the other threads run on between two workers' closing."""
        time.sleep(0.5)
        close(worker)

    monkeypatch.setattr(DecodeWorker, "close", held_up)
    assert run(range(4), task=tasks.double, workers=3) == {n: 2 * n for n in range(4)}
    assert wait_until(lambda: not child_processes())
