"""How many rows go best together: chosen by time, measured once, of no effect on any caption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cogcache.generation import row_tuner as tuner
from cogcache.generation.row_tuner import best, rows_a_step
from cogcache.models import Offload, Quantization, load_half
from cogcache.system import Processor

AVX2 = Processor("made up", "x86_64", "AVX2", avx512_bf16=False, amx=False)
AVX512 = Processor("made up", "x86_64", "AVX512", avx512_bf16=True, amx=False)
MODEL = {"language_digest": "a" * 64, "quantization": {"kind": "none"}}


@pytest.fixture(scope="module")
def half():
    return load_half("tiny", "language", quantization=Quantization(kind="none")).model


@pytest.fixture
def timed(monkeypatch, tmp_path) -> list[list[int]]:
    """Numbers of rows in the order in which they were measured; one row is the fastest."""
    asked: list[list[int]] = []

    def measured(_: object, counts: list[int], __: object) -> dict[int, float]:
        asked.append(list(counts))
        return {rows: 1.0 if rows == 1 else 2.0 * rows for rows in counts}

    monkeypatch.setattr(tuner, "measured", measured)
    monkeypatch.setattr(tuner, "processor", lambda: AVX2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return asked


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        ({1: 1.0, 16: 7.0}, 16),
        ({1: 1.0, 2: 4.0, 4: 8.0, 8: 10.0}, 1),
        ({1: 1.0, 2: 1.9, 4: 4.1}, 4),
        ({8: 1.0}, 8),
    ],
)
def test_the_rows_that_give_most_a_second_are_taken_and_more_where_it_is_all_the_same(
    seconds, rows
):
    assert best(seconds) == rows


def test_it_is_measured_once_for_a_machine_and_a_model(half, timed, tmp_path):
    assert [rows_a_step(half, 6, MODEL) for _ in range(2)] == [1, 1]
    assert timed == [[1, 2, 4, 6]]
    [file] = tmp_path.rglob("*.json")
    assert json.loads(file.read_text()).keys() == {"1", "2", "4", "6"}
    rows_a_step(half, 8, MODEL)  # of more room only what is new is measured
    assert timed[1:] == [[8]]
    rows_a_step(half, 6, {**MODEL, "quantization": {"kind": "int4"}})
    assert timed[2:] == [[1, 2, 4, 6]]


@pytest.mark.parametrize("content", ["", "[1]", '{"1": null}', '{"many": 2}'])
def test_a_damaged_file_is_measured_anew(half, timed, tmp_path, content):
    rows_a_step(half, 2, MODEL)
    [file] = tmp_path.rglob("*.json")
    file.write_text(content)
    assert rows_a_step(half, 2, MODEL) == 1
    assert json.loads(file.read_text()).keys() == {"1", "2"}


def test_a_folder_that_cannot_be_made_is_no_error(half, timed, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert rows_a_step(half, 2, MODEL) == 1


def test_nothing_is_measured_where_bf16_is_multiplied(half, timed, monkeypatch):
    monkeypatch.setattr(tuner, "processor", lambda: AVX512)
    assert rows_a_step(half, 8, MODEL) == 8
    assert not timed


def test_nothing_is_measured_where_blocks_wait_elsewhere(timed):
    asked = Quantization(kind="int4")
    loaded = load_half("tiny", "language", quantization=asked, offload=Offload(1))
    assert rows_a_step(loaded.model, 8, MODEL) == 8
    assert not timed


@pytest.mark.parametrize(
    ("kind", "compute_dtype"),
    [
        ("none", "bfloat16"),
        ("none", "float32"),
        ("nf4", "bfloat16"),
        ("nf4", "float32"),
        ("int8", "bfloat16"),
        ("int4", "bfloat16"),
    ],
)
def test_products_of_each_kind_are_measured_with_what_the_model_gives_them(
    monkeypatch, tmp_path, kind, compute_dtype
):
    asked = Quantization(kind=kind, compute_dtype=compute_dtype)
    half = load_half("tiny", "language", quantization=asked).model
    monkeypatch.setattr(tuner, "processor", lambda: AVX2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert rows_a_step(half, 4, MODEL) in (1, 2, 4)
    [file] = tmp_path.rglob("*.json")
    assert min(json.loads(file.read_text()).values()) > 0


def test_the_folder_is_the_users_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/nobody")
    assert tuner.folder() == Path("/nobody/.cache/cogcache")
