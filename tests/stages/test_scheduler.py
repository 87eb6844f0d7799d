"""What a scheduler promises, by both engines: nothing lost, nothing twice, poison known as such."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import contextmanager

import psutil
import pytest
import worker_tasks as tasks
from clusters import cluster_of

from cogcache.errors import ClipError, CogcacheError, ConfigError, VideoError
from cogcache.stages.distributed.process_workers import ProcessEngine
from cogcache.stages.distributed.scheduler import TRIES, Scheduler, WorkerSpec
from cogcache.system.signals import Stop


@pytest.fixture(scope="module")
def address():
    with cluster_of(nodes=1) as cluster:
        yield cluster.address


@pytest.fixture(params=["processes", "ray"])
def engine(request):
    if request.param == "processes":
        return ProcessEngine
    from cogcache.stages.distributed.ray_workers import RayEngine

    return lambda: RayEngine(request.getfixturevalue("address"))


@contextmanager
def scheduler_of(engine, *phases: list[WorkerSpec]):
    with Scheduler(engine(), phases, Stop()) as scheduler:
        yield scheduler


def worker_specs(count: int, actor_spec=None, **more) -> list[WorkerSpec]:
    return [WorkerSpec(actor_spec or tasks.Answering(), **more) for _ in range(count)]


def outcomes(scheduler: Scheduler, jobs) -> dict[object, object]:
    settled = [pair for some in scheduler.map(iter(jobs)) for pair in some]
    found = dict(settled)
    assert len(found) == len(settled), "a job was settled twice"
    return found


def test_every_job_comes_back_once(engine):
    with scheduler_of(engine, worker_specs(2)) as scheduler:
        assert outcomes(scheduler, range(30)) == {number: number for number in range(30)}


def test_a_source_without_a_job_just_now_is_asked_again(engine):
    came: list[object] = []

    def jobs():
        yield 1
        while not came:
            yield None
        yield 2

    with scheduler_of(engine, worker_specs(1)) as scheduler:
        for settled in scheduler.map(jobs()):
            came += settled
    assert came == [(1, 1), (2, 2)]


def test_a_poisonous_job_fails_after_its_tries_and_its_neighbours_do_not(engine):
    jobs = [*range(6), "poison", *range(6, 12)]
    with scheduler_of(engine, worker_specs(1, tasks.Together(), room=4)) as scheduler:
        found = outcomes(scheduler, jobs)
        error = found.pop("poison")
    assert isinstance(error, ClipError)
    assert (error.reason, f"{TRIES} workers" in error.problem) == ("worker_lost", True)
    assert found == {number: number for number in range(12)}


def test_a_worker_that_is_killed_costs_nothing(engine):
    jobs = iter(range(40))
    killed: list[int] = []
    done: Counter[object] = Counter()
    with scheduler_of(engine, worker_specs(2, room=3)) as scheduler:
        for some in scheduler.map(jobs):
            done.update(job for job, result in some if job == result)
            alive = [pid for pid in scheduler.stats.values() if pid not in killed]
            # Not faster than jobs get done: one that loses all its workers is given up.
            if alive and len(killed) < min(10, done.total() // 3):
                os.kill(alive[-1], signal.SIGKILL)
                killed.append(alive[-1])
    assert len(killed) == 10
    assert done == Counter(range(40))


def test_a_clip_error_is_the_jobs_outcome(engine):
    with scheduler_of(engine, worker_specs(1)) as scheduler:
        error = outcomes(scheduler, ["clip error"])["clip error"]
    assert isinstance(error, VideoError)
    assert (error.reason, error.hint) == ("no_frames", "look elsewhere")


def test_what_is_said_of_a_lost_worker_is_a_line(engine, caplog, capfd):
    with scheduler_of(engine, worker_specs(1, tasks.Together(), room=4)) as scheduler:
        outcomes(scheduler, ["poison"])
    message = [record.getMessage() for record in caplog.records]
    assert len(message) == TRIES
    assert all(len(each) < 100 and each.startswith("a worker was lost (") for each in message)
    assert capfd.readouterr().out == ""  # Ray has much to say


def test_workers_that_all_jobs_take_down_end_the_run():
    with (
        scheduler_of(ProcessEngine, worker_specs(1)) as scheduler,
        pytest.raises(CogcacheError, match="lost one after another"),
    ):
        [*scheduler.map(iter(["kill"] * 60))]


def test_a_bug_is_raised_with_the_workers_traceback(engine):
    with scheduler_of(engine, worker_specs(1)) as scheduler, pytest.raises(KeyError) as raised:
        outcomes(scheduler, ["bug"])
    assert "Traceback" in "".join(raised.value.__notes__)


def test_workers_that_cannot_start_end_the_run(engine):
    with (
        scheduler_of(engine, worker_specs(1, tasks.Answering(start_with="kill"))) as scheduler,
        pytest.raises(CogcacheError, match="lost one after another"),
    ):
        outcomes(scheduler, [1])


def test_a_bug_at_the_start_is_raised(engine):
    with (
        scheduler_of(engine, worker_specs(1, tasks.Answering("bug"))) as scheduler,
        pytest.raises(KeyError),
    ):
        outcomes(scheduler, [1])


def test_parcels_go_from_phase_to_phase(engine):
    with scheduler_of(
        engine, worker_specs(2, tasks.Carrying()), worker_specs(1, tasks.Measuring())
    ) as scheduler:
        found = outcomes(scheduler, [3, 1, 4, 2])
    assert {job: result[:2] for job, result in found.items()} == {
        size: (1 << 20, size) for size in (1, 2, 3, 4)
    }


def test_a_worker_has_no_more_in_hand_than_there_is_room_for():
    with scheduler_of(ProcessEngine, worker_specs(1, tasks.Gathering(), room=3)) as scheduler:
        together = outcomes(scheduler, range(12)).values()
    assert max(map(len, together)) == 3


def test_jobs_are_taken_up_only_as_there_is_room():
    taken: list[int] = []

    def jobs():
        for number in range(20):
            taken.append(number)
            yield number

    with scheduler_of(ProcessEngine, worker_specs(2, room=1)) as scheduler:
        done = 0
        for some in scheduler.map(jobs()):
            assert len(taken) <= done + 3
            done += len(some)
    assert done == 20


def test_the_scheduler_goes_on_with_another_list_of_jobs(engine):
    with scheduler_of(engine, worker_specs(1)) as scheduler:
        assert outcomes(scheduler, [1, 2]) == {1: 1, 2: 2}
        first = set(scheduler.stats.values())
        assert outcomes(scheduler, [3]) == {3: 3}
        assert set(scheduler.stats.values()) == first


def test_closing_leaves_no_process(engine):
    with scheduler_of(engine, worker_specs(2)) as scheduler:
        outcomes(scheduler, range(8))
        pids = set(scheduler.stats.values())
        next(scheduler.map(iter([1, "hang", "hang"])))
    end = time.monotonic() + 10
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, pids))


def test_signals_keep_their_handlers_where_ray_is_used(address):
    from cogcache.stages.distributed.ray_workers import RayEngine

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    RayEngine(address).close()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_ray_that_is_not_installed_is_an_error_with_the_command(monkeypatch):
    import sys

    from cogcache.stages.distributed.ray_workers import RayEngine

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt '\.\[ray\]'"):
        RayEngine(None)


def test_a_cluster_that_is_not_there_is_an_error():
    from cogcache.stages.distributed.ray_workers import RayEngine

    with pytest.raises(CogcacheError, match=r"cannot reach a Ray cluster at 127\.0\.0\.1:1"):
        RayEngine("127.0.0.1:1")
