"""The tables of docs/scale.md are computed, and the simulation keeps its books."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.scale import UnitCosts, stored, worked
from benchmarks.simulation import Cluster, Parameters

PAGE = (Path(__file__).parents[2] / "docs/scale.md").read_text()
SMALL = Parameters(workers=64, hours=1.0, seconds_per_clip=4.0, mtbf_h=1e6)


@pytest.mark.parametrize(("name", "table"), [("stored", stored), ("worked", worked)])
def test_the_tables_of_the_page_are_those_of_the_program(name, table):
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", PAGE, re.DOTALL)
    assert found[1] == table(UnitCosts())


def test_without_failures_all_that_workers_can_do_gets_done():
    result = Cluster(SMALL).run()
    assert result["clips a second"] == pytest.approx(16, rel=0.03)
    assert result["clips lost in hand"] == result["failures of nodes"] == 0


def test_failures_cost_what_was_in_hand_and_since_the_last_copy():
    failing = Parameters(**{**vars(SMALL), "mtbf_h": 1.0, "own_catalogs": True})
    result = Cluster(failing).run()
    failures = result["failures of nodes"]
    assert failures > 3
    assert result["clips lost in hand"] == 8 * 8 * failures
    assert 0 < result["captions lost since a copy"] < failures * 8 * (300 / 4 + 8)
    assert result["clips a second"] < 16 * 0.9


def test_a_writer_that_is_too_slow_has_rows_waiting():
    slow = Parameters(**{**vars(SMALL), "row_us": 100_000.0})
    result = Cluster(slow).run()
    assert result["rows wait, p99 s"] > 60
    assert result["clips waiting at most"] > 10_000
