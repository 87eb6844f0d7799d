"""Checks of an installation: that they pass here, and that each can fail."""

from __future__ import annotations

import json
import platform
from contextlib import nullcontext

import pytest
import torch
from click.testing import CliRunner

from cogcache.cli import main
from cogcache.errors import CheckpointError
from cogcache.models.releases import PASSED
from cogcache.selftest import doctor

CHECKS = {
    "versions", "transformers", "device", "processor", "products on the CPU",
    "4-bit product against bf16",
    "decord", "PyAV", "feature file", "full-text search", "model tiny", "disk", "main memory",
    "extras", "hub", "CUDA and NVML",
}  # fmt: skip


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    return {check.check: check for check in doctor.examine(tmp_path_factory.mktemp("doctor"))}


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_the_check_passes_on_this_machine(examined, name):
    assert examined[name].ok, examined[name].found


def test_the_processor_is_named_with_what_its_products_depend_on(examined):
    assert torch.backends.cpu.get_cpu_capability() in examined["processor"].found
    assert "AVX512-BF16" in examined["processor"].found or platform.machine() not in ("x86_64",)


def test_a_product_of_each_kind_is_timed(examined):
    found = examined["products on the CPU"].found
    assert all(f"{kind} " in found for kind in ("bf16", "nf4", "fp4", "int8", "int4", "float32"))


def test_every_check_says_what_it_found(examined):
    assert set(examined) >= CHECKS
    assert all(check.found for check in examined.values())


def test_a_folder_that_is_not_there_yet_is_looked_at_where_it_will_be(tmp_path):
    assert str(tmp_path) in doctor._disk(tmp_path / "new" / "cache")


@pytest.mark.parametrize(
    "error",
    [
        doctor.NotWell("it does not work"),
        CheckpointError("a shard is missing", "fetch it anew"),
        ImportError("No module named 'decord'"),
        OSError("no space left on device"),
        RuntimeError("CUDA error"),
    ],
)
def test_a_fault_is_a_row_and_not_a_traceback(error):
    def check() -> str:
        raise error

    row = doctor._run("something", check)
    assert not row.ok
    assert str(error) in row.found


def test_a_full_disk_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 10**30)
    result = CliRunner().invoke(main, ["doctor", f"--cache={tmp_path}", "--json"])
    assert result.exit_code == 1
    rows = {row["check"]: row for row in json.loads(result.stdout)}
    assert not rows["disk"]["ok"]
    assert "free at" in rows["disk"]["found"]
    assert rows["decord"]["ok"]


@pytest.mark.parametrize(
    ("installed", "ok", "said"),
    [
        (PASSED[-1], True, "compared"),
        (f"{PASSED[-1].rpartition('.')[0]}.77", True, "never tried"),
        ("5.999.0", False, "5.999.0 was never tried"),
    ],
)
def test_a_transformers_of_a_minor_version_that_nobody_tried_is_a_fault(
    monkeypatch, installed, ok, said
):
    monkeypatch.setattr(doctor, "version_of", lambda _: installed)
    row = doctor._run("transformers", doctor._transformers)
    assert row.ok is ok
    assert said in row.found


def test_little_main_memory_is_a_fault_with_what_to_do(monkeypatch):
    monkeypatch.setattr(doctor, "available_bytes", lambda: 2**30)
    row = doctor._run("main memory", doctor._main_memory)
    assert not row.ok
    assert "1 GiB are free" in row.found
    assert "--memory" in row.found


def test_extras_that_are_not_there_are_named_with_the_line_that_installs_them(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "ray" else name)
    row = doctor._run("extras", doctor._extras)
    assert row.ok
    there, _, line = row.found.partition("; the others: ")
    assert "parquet" in there
    assert "ray" not in there
    assert "pip install -c constraints.txt '.[ray]'" in line


@pytest.mark.parametrize(
    ("offline", "answer", "said"),
    [
        ("1", None, "offline, as HF_HUB_OFFLINE says"),
        ("0", OSError("no route"), "not reachable (no route): give --model a folder"),
        ("0", None, "reachable"),
    ],
)
def test_the_hub_is_asked_unless_this_machine_is_offline(monkeypatch, offline, answer, said):
    def connect(*_: object, **__: object) -> nullcontext[None]:
        if answer is not None:
            raise answer
        return nullcontext()

    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(doctor.socket, "create_connection", connect)
    assert doctor._hub().startswith(said)


def test_a_gpu_without_nvml_is_told_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert doctor._cuda() == "2 CUDA devices, no NVML: " + doctor.install_line("nvml")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor._cuda().startswith("no CUDA device")


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        ("cogcache.models.quantized_linear", doctor._product, "install bitsandbytes anew"),
        ("cogcache.video.decord_frames", lambda: doctor._decodes("decord"), "PyAV serves"),
        ("torch.equal", doctor._feature_file, "install h5py and hdf5plugin anew"),
    ],
)
def test_a_part_that_gives_something_else_is_a_fault_with_what_to_do(
    monkeypatch, broken, check, said
):
    answers = {
        "cogcache.models.quantized_linear": lambda *_: _Wrong(),
        "cogcache.video.decord_frames": lambda *_: None,
        "torch.equal": lambda *_: False,
    }
    monkeypatch.setattr("cogcache.models.dequantized", lambda _: torch.ones(256, 256))
    monkeypatch.setattr(broken, answers[broken])
    row = doctor._run("part", check)
    assert not row.ok
    assert said in row.found


class _Wrong(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)
