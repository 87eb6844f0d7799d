"""What a run says of itself."""

from __future__ import annotations

import time

import pytest

from cogcache.planning.choices import StagePlan
from cogcache.stages.runs.report import Counts, RunReport, Timings, versions
from cogcache.stages.runs.report_lines import report_lines
from cogcache.system.memory_monitor import MemoryMonitor, MemorySample

MIB = 1024**2


def report(command: str = "extract", **counts: int) -> RunReport:
    return RunReport(1, command, "tiny", Counts(**counts), Timings())


@pytest.mark.parametrize(
    ("made", "stopped", "status", "exit_status"),
    [
        (report(found=2, done=2), None, "done", 0),
        (report(found=2, cached=2), None, "done", 0),
        (report(found=2, done=1, failed=1), None, "failures", 1),
        (report(found=2, done=1, skipped=1), None, "failures", 0),
        (report("caption"), None, "done", 1),
        (report(found=2, done=1), "SIGINT", "stopped", 130),
        (report(found=2, done=1), "SIGTERM", "stopped", 143),
    ],
)
def test_status_and_exit_status_say_how_it_ended(made, stopped, status, exit_status):
    made.stopped = stopped
    assert (made.status, made.exit_status) == (status, exit_status)


def test_what_failed_before_is_a_failure_again_where_that_is_asked_for():
    made = report(found=2, done=1, skipped=1)
    made.fail_on_known = True
    assert made.exit_status == 1


def test_the_first_line_names_what_was_made_there_failed_and_how_long_it_took():
    made = report(found=7, done=3, cached=1, failed=2, skipped=1)
    made.total_s = 61
    assert report_lines(made)[0] == (
        "extract: 3 clips made, 1 there already, 2 failed, "
        "1 failed before (--retry-failed), in 1 min 01 s (2.95 a minute)"
    )


def test_a_run_that_found_nothing_says_what_to_do():
    assert "`cogcache extract`" in report_lines(report("caption"))[0]


def test_a_run_without_work_is_told_in_one_line():
    assert len(report_lines(report(found=3, cached=3))) == 1


def test_a_run_that_was_stopped_says_how_to_go_on():
    made = report(found=3, done=1)
    made.stopped = "SIGTERM"
    assert "run the same command to go on" in report_lines(made)[1]


def test_planned_and_measured_peaks_stand_side_by_side():
    made = report(found=1, done=1)
    made.planned, made.base_bytes = StagePlan(30 * MIB, 20 * MIB, 10 * MIB), 100 * MIB
    made.peak = MemorySample(anonymous_bytes=120 * MIB, file_bytes=50 * MIB)
    text = "\n".join(report_lines(made, verbose=True))
    assert "170 MiB" in text
    assert "planned 160 MiB" in text
    assert (made.end().planned_peak_bytes, made.end().measured_peak_bytes) == (
        160 * MIB, 170 * MIB,
    )  # fmt: skip


def test_on_a_device_the_libraries_are_no_part_of_the_plan():
    made = report(found=1, done=1)
    made.planned, made.base_bytes = StagePlan(30 * MIB, 20 * MIB), 100 * MIB
    made.peak = MemorySample(anonymous_bytes=900 * MIB, device_bytes=48 * MIB)
    assert made.end().planned_peak_bytes == 50 * MIB
    assert made.end().measured_peak_bytes == 48 * MIB
    assert "on the device" in "\n".join(report_lines(made, verbose=True))


def test_times_of_a_part_add_up_even_if_it_fails():
    split = Timings()
    with split.time("a"):
        time.sleep(0.01)

    def fail() -> None:
        with split.time("a"):
            time.sleep(0.01)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert split.seconds["a"] >= 0.02


def test_a_monitor_gives_the_peak_and_the_time():
    made = report(found=1, done=1)
    with MemoryMonitor() as monitor:
        held = bytearray(50 * MIB)
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(0.1)
    made.finish(monitor)
    assert made.end().measured_peak_bytes > 50 * MIB
    assert made.end().report["timeline"]
    assert made.total_s >= 0.1


def test_versions_are_those_of_what_results_depend_on():
    assert {"cogcache", "torch", "transformers", "bitsandbytes"} <= set(versions())
