from __future__ import annotations

import json
import subprocess
import sys

import h5py
import pytest
import torch
from click.testing import CliRunner

from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.errors import ConfigError, CorruptFeaturesError
from cogcache.export.feature_pack import pack
from cogcache.store.store import FeatureStore
from tests.support.exported import CUT, add_features, make_cache

READER = """
import h5py, sys
with h5py.File(sys.argv[1]) as file:
    clip = next(iter(file.values()))
    print(clip["tensors/features"][:].shape, clip["tensors/grid"][:].tolist(), clip.attrs["fps"])
"""


@pytest.fixture
def cache(tmp_path):
    cache = make_cache(tmp_path)
    add_features(cache)
    return cache


def test_plain_h5py_reads_a_pack_without_plugins(cache, tmp_path):
    assert pack(cache, tmp_path / "out.h5", Selection()).clips == 3
    command = [sys.executable, "-I", "-c", READER, str(tmp_path / "out.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "(24, 64, 64) [24, 8, 8] 8.0\n"


def test_a_pack_holds_the_exact_numbers_and_what_was_said_of_the_clip(cache, tmp_path):
    pack(cache, tmp_path / "out.h5", Selection(max_duration_s=1.0))
    store = FeatureStore.open(cache)
    with h5py.File(tmp_path / "out.h5") as file:
        (key,) = file
        found = torch.from_numpy(file[key]["tensors/features"][:])
        said = json.loads(file[key]["captions"][()])
    assert torch.equal(found, store.read(key).tensors["features"].float())
    assert [row["caption"] for row in said] == [CUT]


def test_the_same_pack_twice_is_the_same_bytes(cache, tmp_path):
    for name in ("a.h5", "b.h5"):
        pack(cache, tmp_path / name, Selection())
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_damaged_feature_file_makes_no_pack(cache, tmp_path):
    store = FeatureStore.open(cache)
    path = store.path_of(next(store.keys()))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFeaturesError):
        pack(cache, tmp_path / "out.h5", Selection())
    assert not [*tmp_path.glob("*out.h5*")]


def test_nothing_chosen_and_what_is_there_are_refused(cache, tmp_path):
    with pytest.raises(ConfigError, match="no clip"):
        pack(cache, tmp_path / "out.h5", Selection(models=("none",)))
    (tmp_path / "out.h5").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        pack(cache, tmp_path / "out.h5", Selection())


def test_the_command_packs(cache, tmp_path):
    arguments = ["export", "--features", str(tmp_path / "out.h5"), "--cache", str(cache)]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stdout) == (0, "3 clips packed\n")
