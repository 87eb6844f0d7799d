"""Checks of an installation: that they pass here, and that each can fail."""

from __future__ import annotations

import json
import platform

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
    "decord", "PyAV", "feature file", "full-text search", "model tiny", "disk",
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
