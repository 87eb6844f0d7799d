"""`--quantization auto`: what the cache has, else what the machine is fast at; said once."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scenes import catalog_of, settings, write_scene

from cogcache.errors import QuantizationError
from cogcache.models import Checkpoint, MadeWith, choose_quantization, cost_of_going_on, family_of
from cogcache.models import split as split_checkpoint
from cogcache.models.quantization import automatic, int4_products
from cogcache.planning import Job, make_plan
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.system import Processor

AVX2 = Processor("made up", "x86_64", "AVX2", avx512_bf16=False, amx=False)
AVX512 = Processor("made up", "x86_64", "AVX512", avx512_bf16=True, amx=False)
PROMPT = {"color": "What color is the shape?"}


def on(monkeypatch, seen: Processor, times: dict[str, float] | None = None) -> None:
    def timed(kinds: object) -> dict[str, float]:
        assert times is not None, "nothing was to be timed"
        return times

    monkeypatch.setattr(automatic, "processor", lambda: seen)
    monkeypatch.setattr(automatic, "product_times_s", timed)


def asked(**overrides: object):
    return settings(**{"max_new_tokens": 4, "prompts": PROMPT, "retry": False, **overrides})


def chosen(made: MadeWith | None = None, **overrides: object):
    choice = choose_quantization(asked(**overrides), family_of(Checkpoint.open("tiny")), made)
    return choice, choice.settings.language.quantization


# The machine


def test_auto_is_the_default():
    assert asked().language.quantization == "auto"


def test_with_avx512_it_is_nf4_and_not_worth_a_word(monkeypatch):
    on(monkeypatch, AVX512)
    choice, kind = chosen()
    assert (kind, choice.is_worth_saying) == ("nf4", False)


def test_without_avx512_it_is_int4_and_why_is_said(monkeypatch):
    on(monkeypatch, AVX2)
    choice, kind = chosen()
    assert (kind, choice.settings.language.group_size) == ("int4", 64)
    assert choice.is_worth_saying
    assert "without AVX-512" in choice.reason
    assert AVX2.level in choice.reason


def test_groups_that_would_leave_layers_out_are_halved(monkeypatch):
    """The layers of `tiny` have 128 columns."""
    on(monkeypatch, AVX2)
    assert chosen(group_size=256)[0].settings.language.group_size == 128


@pytest.mark.parametrize(("nf4_s", "kind"), [(2.0, "int4"), (0.5, "nf4")])
def test_on_other_processors_the_two_are_timed(monkeypatch, nf4_s, kind):
    on(monkeypatch, Processor("", "riscv64", "DEFAULT", False, False), {"nf4": nf4_s, "int4": 1.0})
    assert chosen()[1] == kind


def test_in_float32_it_is_nf4(monkeypatch):
    on(monkeypatch, AVX2)
    choice, kind = chosen(compute_dtype="float32")
    assert (kind, "float32" in choice.reason) == ("nf4", True)


def test_a_torch_without_the_product_takes_nf4(monkeypatch):
    on(monkeypatch, AVX2)
    monkeypatch.setitem(int4_products.OPERATORS, "cpu", ("_no_such_product",))
    assert chosen()[1] == "nf4"


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8", "int4", "none"])
def test_a_kind_that_is_asked_for_stays(monkeypatch, kind):
    on(monkeypatch, AVX2)
    choice, found = chosen(MadeWith({"nf4": 3}), quantization=kind)
    assert (found, choice.reason) == (kind, "")


# The cache


def test_a_cache_in_nf4_goes_on_with_it_and_says_what_that_costs(monkeypatch):
    on(monkeypatch, AVX2, {"nf4": 0.040, "int4": 0.0015})
    choice, kind = chosen(MadeWith({"nf4": 3, "int4": 2, "none": 9, "imported": 20}))
    said = cost_of_going_on(asked(), choice)
    assert (kind, said.settings) == ("nf4", choice.settings)
    assert said.is_worth_saying
    assert "3 captions of the cache are in nf4; going on with it costs time, 27 " in said.reason
    assert "--quantization int4 makes all captions anew" in said.reason


def test_a_cache_in_nf4_costs_nothing_where_avx512_is(monkeypatch):
    on(monkeypatch, AVX512)
    choice, _ = chosen(MadeWith({"nf4": 3}))
    assert cost_of_going_on(asked(), choice) == choice


def test_a_cache_in_int4_goes_on_with_it_on_a_machine_that_would_take_nf4(monkeypatch):
    on(monkeypatch, AVX512)
    choice, kind = chosen(MadeWith({"int4": 3}, group_size=32))
    assert (kind, choice.settings.language.group_size) == ("int4", 32)


def test_a_cache_in_int4_goes_on_in_nf4_where_int4_cannot_be_had_and_says_so(monkeypatch):
    on(monkeypatch, AVX512)
    choice, kind = chosen(MadeWith({"int4": 3}, group_size=32), compute_dtype="float32")
    assert (kind, choice.is_worth_saying) == ("nf4", True)
    assert choice.reason.endswith("all captions are made anew")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("auto")
    (folder / "videos").mkdir()
    for seed in range(2):
        write_scene(folder / "videos" / f"{seed}.mp4", seed)
    extract([folder / "videos"], folder / "cache", settings())
    return folder / "cache"


def kinds_in(cache: Path) -> list[tuple[str, dict[str, object]]]:
    with catalog_of(cache) as catalog:
        rows = catalog.captions.rows()
    return [(row["quantization"], row["settings"]["quantization"]) for row in rows]


def test_a_run_says_once_what_it_took_and_names_it_in_key_and_row(
    extracted, tmp_path, monkeypatch, caplog
):
    cache = shutil.copytree(extracted, tmp_path / "cache")
    on(monkeypatch, AVX2)
    caplog.set_level(logging.INFO, automatic.__name__)
    report = caption(cache, asked())
    assert "int4: " in str(report.quantization)
    key = {"kind": "int4", "group_size": 64, "compute_dtype": "bfloat16"}
    assert kinds_in(cache) == [("int4", key)] * 2
    said = [record for record in caplog.records if record.name == automatic.__name__]
    assert len(said) == 1
    assert "--quantization auto is int4 here: without AVX-512" in said[0].getMessage()
    on(monkeypatch, AVX512)  # the cache was carried to another machine
    caplog.clear()
    report = caption(cache, asked())
    assert (report.counts.done, report.counts.cached) == (0, 2)
    assert not caplog.records


def test_a_cache_of_captions_in_nf4_is_done_on_a_machine_without_avx512(
    extracted, tmp_path, monkeypatch
):
    cache = shutil.copytree(extracted, tmp_path / "cache")
    on(monkeypatch, AVX512)
    caption(cache, asked())
    key = {"kind": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
    assert kinds_in(cache) == [("nf4", key)] * 2
    on(monkeypatch, AVX2)
    report = caption(cache, asked())
    assert (report.counts.done, report.counts.cached) == (0, 2)
    more = {**PROMPT, "shape": "What shape is it?"}
    on(monkeypatch, AVX2, {"nf4": 2.0, "int4": 1.0})
    assert caption(cache, asked(prompts=more)).counts.done == 2
    assert {kind for kind, _ in kinds_in(cache)} == {"nf4"}


# Splits and plans


def test_a_split_goes_on_with_what_it_holds(tmp_path, monkeypatch):
    on(monkeypatch, AVX2)
    asked_for = asked(quantization="nf4", double_quant=False)
    split_checkpoint("tiny", tmp_path / "parts", asked_for)
    family = family_of(Checkpoint.open(str(tmp_path / "parts")))
    language = choose_quantization(asked(), family, MadeWith({"int4": 5})).settings.language
    assert (language.quantization, language.double_quant) == ("nf4", False)


def test_a_plan_for_the_cpu_is_that_of_the_kind_which_auto_takes_there(monkeypatch):
    on(monkeypatch, AVX2)
    asked_kinds = {
        device: [
            half.precision
            for half in make_plan(asked(device=device), Job(clips=10)).halves
            if half.half == "language" and half.is_asked
        ]
        for device in ("cpu", "auto")
    }
    assert asked_kinds == {"cpu": ["int4"], "auto": ["nf4"]}


def test_a_plan_with_groups_that_do_not_divide_is_refused():
    with pytest.raises(QuantizationError, match="groups of 256 do not divide"):
        make_plan(asked(quantization="int4", group_size=256), Job(clips=10))


def test_a_run_with_nothing_to_do_in_a_cache_in_nf4_loads_no_torch(extracted, tmp_path):
    cache = shutil.copytree(extracted, tmp_path / "cache")
    caption(cache, asked(quantization="nf4"))
    script = f"""
import sys
from pathlib import Path
from cogcache.settings import load_settings
from cogcache.stages.caption import caption
given = {{"max_new_tokens": 4, "prompts": {PROMPT!r}, "retry": False}}
report = caption(Path({str(cache)!r}), load_settings(None, given))
assert report.counts.cached == 2, report.counts
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
