from __future__ import annotations

import mmap
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cogcache.system import memory_monitor
from cogcache.system.memory_monitor import MemoryMonitor, MemorySample, sample

MB = 1_000_000
SIZE = 200 * MB
SLACK = 30 * MB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def fill_in_parts(area: mmap.mmap) -> None:
    part = b"\1" * MB
    for start in range(0, len(area), MB):
        area[start : start + MB] = part


def grown(monitor: MemoryMonitor, figure: str) -> int:
    return int(getattr(monitor.peak, figure) - getattr(monitor.start, figure))


def test_an_allocation_is_seen_at_its_size_though_it_is_gone_at_the_end():
    with MemoryMonitor() as monitor:
        area = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        fill_in_parts(area)
        time.sleep(3 * memory_monitor.SAMPLE_EVERY_S)
        area.close()
    assert abs(grown(monitor, "anonymous_bytes") - SIZE) < SLACK
    assert monitor.timeline[-1].anonymous_bytes - monitor.start.anonymous_bytes < SLACK


def test_a_mapped_file_is_told_from_what_the_process_holds_alone(tmp_path):
    path = tmp_path / "mapped"
    with path.open("wb") as file:
        for _ in range(SIZE // MB):
            file.write(b"\1" * MB)
    with path.open("rb") as file, MemoryMonitor() as monitor:
        area = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert sum(area[:: mmap.PAGESIZE]) == -(-SIZE // mmap.PAGESIZE)
        time.sleep(3 * memory_monitor.SAMPLE_EVERY_S)
        area.close()
    assert abs(grown(monitor, "file_bytes") - SIZE) < SLACK
    assert grown(monitor, "anonymous_bytes") < SLACK


def test_the_two_figures_add_up_to_resident_memory():
    import psutil

    resident = psutil.Process().memory_info().rss
    assert abs(sample().host_bytes - resident) < SLACK


def test_without_a_gpu_there_is_no_device_memory():
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        pytest.skip("a GPU is in use")
    assert (sample().device_bytes, sample().reserved_bytes) == (0, 0)


def test_measuring_does_not_load_torch():
    code = "import sys\nfrom cogcache.system import MemoryMonitor\nwith MemoryMonitor(): pass\n"
    command = [sys.executable, "-c", f"{code}print('torch' in sys.modules)"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_a_moment_without_files_to_open_is_left_out_and_watching_goes_on():
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with MemoryMonitor() as monitor:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            time.sleep(3 * memory_monitor.SAMPLE_EVERY_S)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        seen = len(monitor.timeline)
        time.sleep(6 * memory_monitor.SAMPLE_EVERY_S)
        assert len(monitor.timeline) > seen


def test_the_timeline_is_bounded_and_keeps_the_whole_of_the_time(monkeypatch):
    monkeypatch.setattr(memory_monitor, "TIMELINE_POINTS", 20)
    monkeypatch.setattr(memory_monitor, "SAMPLE_EVERY_S", 0.001)
    with MemoryMonitor() as monitor:
        time.sleep(0.3)
    times = [point.time_s for point in monitor.timeline]
    assert 10 <= len(times) <= 20
    assert times == sorted(times)
    assert times[0] == monitor.start.time_s
    assert times[-1] >= 0.3


def test_samples_become_rarer_as_the_timeline_fills(monkeypatch):
    monkeypatch.setattr(memory_monitor, "TIMELINE_POINTS", 20)
    monkeypatch.setattr(memory_monitor, "SAMPLE_EVERY_S", 0.001)
    with MemoryMonitor() as monitor:
        time.sleep(0.3)
    gaps = [
        b.time_s - a.time_s for a, b in zip(monitor.timeline, monitor.timeline[1:], strict=False)
    ]
    assert max(gaps) > 0.005


def test_the_peak_outlives_its_point_of_the_timeline(monkeypatch):
    monkeypatch.setattr(memory_monitor, "TIMELINE_POINTS", 4)
    monitor = MemoryMonitor()
    high = 10 * monitor.start.anonymous_bytes
    for moment in range(100):
        monitor._record(MemorySample(moment, high if moment == 4 else 1, 1))
    assert max(point.anonymous_bytes for point in monitor.timeline) < high
    assert monitor.peak.anonymous_bytes == high
    assert monitor.peak.time_s == 99


def test_an_error_in_the_block_passes_and_ends_the_thread():
    with pytest.raises(ZeroDivisionError), MemoryMonitor() as monitor:
        _ = 1 / 0
    assert not monitor._thread.is_alive()


def test_a_sample_is_ready_for_json():
    assert set(sample().as_dict()) == {
        "time_s",
        "anonymous_bytes",
        "file_bytes",
        "device_bytes",
        "reserved_bytes",
        "driver_bytes",
    }


def test_the_drivers_own_figure_is_taken_where_there_is_one(monkeypatch):
    import torch

    monkeypatch.setattr(memory_monitor, "_device_bytes", lambda: (3, 5))
    memory_monitor._nvml.cache_clear()
    assert sample().driver_bytes == 0  # there is no driver here, and no NVML
    memory_monitor._nvml.cache_clear()
    monkeypatch.setattr(torch.cuda, "device_memory_used", lambda: 7)
    assert sample().driver_bytes == 7
    memory_monitor._nvml.cache_clear()


def test_loading_weights_on_the_cpu_counts_as_mapped(tmp_path):
    """What bf16 weights on the CPU are: the kernel may drop them, so they are no peak."""
    import torch
    from safetensors.torch import load_file, save_file

    path = Path(tmp_path / "weights.safetensors")
    save_file({"weight": torch.ones(50 * MB, dtype=torch.bfloat16)}, path)
    with MemoryMonitor() as monitor:
        weight = load_file(path)["weight"]
        assert weight[:: mmap.PAGESIZE // 2].float().mean() == 1
        time.sleep(3 * memory_monitor.SAMPLE_EVERY_S)
        del weight
    assert abs(grown(monitor, "file_bytes") - 100 * MB) < SLACK
    assert grown(monitor, "anonymous_bytes") < SLACK


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the threshold")
def test_a_freed_block_is_given_back_at_once():
    # In a process of its own: threads that other tests have left may take memory just then.
    program = textwrap.dedent("""
        import numpy as np
        from cogcache.system import blocks_given_back, sample
        np.ones(31 << 20, np.uint8)  # freed at once: glibc now keeps blocks up to this size
        with blocks_given_back():
            before = sample().anonymous_bytes
            # Freed in another order than made, as weights are while a half is quantised.
            blocks = [np.ones(8 << 20, np.uint8) for _ in range(24)]
            del blocks[::2]
            print(sample().anonymous_bytes - before)
    """)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert int(done.stdout) < 13 * (8 << 20)
