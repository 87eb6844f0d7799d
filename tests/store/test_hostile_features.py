"""Feature files from strangers: each is a damaged file, found with little memory and time."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from hostile_features import CHANGES as HARMFUL
from hostile_features import seal_anew
from odd_features import CHANGES as ODD

from cogcache.store import FeatureStore

CHANGES = HARMFUL | {f"odd_{name}": change for name, change in ODD.items()}
PROVE = """
import resource, sys
from pathlib import Path
from cogcache.errors import CorruptFeaturesError
from cogcache.store import FeatureStore
import h5py, hdf5plugin, torch
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
# Of what comes on top of what is loaded: 256 MiB.
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 2**28
resource.setrlimit(resource.RLIMIT_AS, (most, most))
store = FeatureStore.open(Path(sys.argv[1]))
for key in sorted(store.present()):
    for what in (store.describe, store.prove, store.read):
        try:
            what(key)
        except CorruptFeaturesError as error:
            print(key, what.__name__, str(error).splitlines()[0].partition("is damaged: ")[2])
        else:
            print(key, what.__name__, "SOUND")
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Prove a cache of all kinds in one process of bounded memory; return what was said of each."""
    store = FeatureStore.create_or_open(tmp_path_factory.mktemp("hostile") / "cache")
    names = {}
    for number, (name, change) in enumerate(CHANGES.items()):
        key = f"{number:02x}" * 32
        store.write(key, {"x": torch.zeros(4)}, {"family": "tiny"})
        change(store.path_of(key))
        if name != "mostly_a_hole" and "pipe" not in name:
            with suppress(AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError):
                seal_anew(store.path_of(key))  # where there is something that can be sealed
        names[key] = name
    command = [sys.executable, "-c", PROVE, str(store.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        key, what, problem = line.split(" ", 2)
        found.setdefault(names[key], {})[what] = problem
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_is_a_damaged_file_to_every_reader(said, name):
    assert said[name].keys() == {"describe", "prove", "read"}
    assert "SOUND" not in (said[name]["prove"], said[name]["read"])
