"""Each public name, and each method of `Cache`, has an example, and what an example shows is so."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import cogcache

NAMES = sorted({*cogcache.__all__} - {"__version__"})
METHODS = [name for name in vars(cogcache.Cache) if not name.startswith("_")]
HOW = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", [*NAMES, *(f"Cache.{method}" for method in METHODS)])
def test_a_public_name_has_an_example_that_is_true(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = cogcache
    for part in name.split("."):
        value = getattr(value, part)
    known = {each: getattr(cogcache, each) for each in NAMES} | {"Path": Path}
    [found] = doctest.DocTestFinder(recurse=False).find(value, name, globs=known)
    assert found.examples
    told: list[str] = []
    doctest.DocTestRunner(optionflags=HOW).run(found, out=told.append)
    assert not told, "".join(told)
