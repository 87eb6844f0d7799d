from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count, islice
from pathlib import Path

import psutil
import pytest
import worker_tasks as tasks

from cogcache.errors import CogcacheError, VideoError
from cogcache.workers import _Worker, map_unordered

HARMLESS = list(range(6))


def run(jobs, *, task=tasks.answer, workers=2, timeout_s=60.0, ahead=4, **more):
    return dict(
        map_unordered(task, jobs, workers=workers, timeout_s=timeout_s, ahead=ahead, **more)
    )


def child_processes() -> list[psutil.Process]:
    """Return the processes that this one has, without the tracker that Python itself keeps."""
    children = psutil.Process().children(recursive=True)
    return [each for each in children if "resource_tracker" not in " ".join(each.cmdline())]


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
    outcome = run([0, "hang", *HARMLESS[1:]], timeout_s=3.0)
    error = outcome.pop("hang")
    assert error.reason == "timeout"
    assert "3 s" in error.problem
    assert outcome == {number: number for number in HARMLESS}


def test_a_worker_killed_while_idle_costs_no_job():
    results = map_unordered(tasks.process_id, range(3), workers=1, timeout_s=60.0, ahead=1)
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
    assert run(["memory"])["memory"].reason == "out_of_memory"


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
        map_unordered(tasks.double, jobs(), workers=2, timeout_s=60.0, ahead=3)
    ) as results:
        for num_done, _ in enumerate(islice(results, 10), start=1):
            assert len(taken) <= num_done + 2


def test_closing_early_leaves_no_process():
    jobs = ["hang" if number == 1 else number for number in range(100)]
    results = map_unordered(tasks.answer, jobs, workers=2, timeout_s=60.0, ahead=10)
    next(results)
    started = time.monotonic()
    results.close()
    assert child_processes() == []
    assert time.monotonic() - started < 5


def test_the_end_leaves_no_process():
    run(range(3))
    assert child_processes() == []


def test_workers_take_no_notice_of_signals_to_end():
    assert run(["signals"]) == {"signals": "lived on"}


PROGRAM = """
    import sys
    from pathlib import Path
    import worker_tasks as tasks
    from cogcache.workers import map_unordered
    if __name__ == "__main__":
        folder = Path(sys.argv[1])
        results = map_unordered(
            tasks.{task}, [folder, folder], workers=2, timeout_s=600.0, ahead=2
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
        here = Path(__file__).parent
        process = subprocess.Popen(
            [sys.executable, "-W", "error", path, tmp_path / "ids"],
            env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
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
    close = _Worker.close

    def held_up(worker: _Worker) -> None:
        """As on a busy machine: the other threads run on between two workers' closing."""
        time.sleep(0.5)
        close(worker)

    monkeypatch.setattr(_Worker, "close", held_up)
    assert run(range(4), task=tasks.double, workers=3) == {n: 2 * n for n in range(4)}
    assert wait_until(lambda: not child_processes())
