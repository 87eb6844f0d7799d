"""The table of releases: complete, and what it says was compared lies among the goldens."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from published import GOLDENS

from cogcache.models import releases
from cogcache.models.registry import FAMILIES
from cogcache.models.releases import PASSED, RELEASES, minor_of, release_note

ROOT = Path(__file__).parents[2]


def test_every_family_has_a_release():
    assert {*RELEASES} == {entry.name for entry in FAMILIES}


def test_the_goldens_are_of_the_releases_that_the_table_names():
    found = {
        path.parent.name: json.loads(path.read_text())["transformers"]
        for path in GOLDENS.glob("*/golden.json")
    }
    named = {name: each.transformers for name, each in RELEASES.items() if each.golden}
    assert found == {name: named[name] for name in named if name != "cogvlm2"}


@pytest.mark.parametrize(("installed", "said"), [("5.99.0", "5.99.0 was never tried"), (None, "")])
def test_a_release_that_never_passed_is_named(monkeypatch, installed, said):
    monkeypatch.setattr(releases, "version_of", lambda _: installed or PASSED[-1])
    assert said in (release_note() or "")
    assert (release_note() is None) == (not said)


def test_the_bounds_of_the_package_are_what_passed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [found] = [each for each in project["dependencies"] if each.startswith("transformers")]
    (first, low), (last, high) = minor_of(PASSED[0]), minor_of(PASSED[-1])
    assert found == f"transformers>={first}.{low},<{last}.{high + 1}"
