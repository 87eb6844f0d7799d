"""HDF5 can load filters from folders: programs that a feature file asks for. None is loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch

from cogcache.store import FeatureStore

KEY = "ab" * 32
FILTER = 32_999
SOURCE = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void act(void) {
    FILE *file = fopen(getenv("ACTED"), "w");
    if (file) fclose(file);
}
int H5PLget_plugin_type(void) { return 0; }
const void *H5PLget_plugin_info(void) { return 0; }
"""
PLAIN = """
import sys, h5py
try:
    h5py.File(sys.argv[1])["tensors/x"][:]
except OSError:
    pass
"""
OURS = """
import sys
from pathlib import Path
from cogcache.errors import CorruptFeaturesError
from cogcache.store import FeatureStore
store = FeatureStore.open(Path(sys.argv[2]))
for what in (store.describe, store.prove, store.read):
    try:
        what("ab" * 32)
    except CorruptFeaturesError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return a cache whose one file asks for a filter, and a folder with a plugin that acts."""
    root = tmp_path_factory.mktemp("planted")
    store = FeatureStore.create_or_open(root / "cache")
    store.write(KEY, {"x": torch.zeros(4)}, {"family": "tiny"})
    with h5py.File(store.path_of(KEY), "r+") as file:
        digest = file["tensors/x"].attrs["sha256"]
        del file["tensors/x"]
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_chunk((4,))
        how.set_filter(FILTER, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((4,))
        made = h5py.h5d.create(file["tensors"].id, b"x", h5py.h5t.IEEE_F32LE, space, how)
        made.write_direct_chunk((0,), bytes(16))
        h5py.Dataset(made).attrs["sha256"] = digest
    return root


@pytest.fixture(scope="module")
def plugins(planted):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no compiler of C")
    folder = planted / "plugins"
    folder.mkdir()
    source = planted / "plugin.c"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libh5act.so", source], check=True)
    return folder


def said(program: str, planted: Path, plugins: Path) -> tuple[str, bool]:
    """Return what a program says of the planted file, and whether the plugin acted meanwhile."""
    acted = planted / "acted"
    acted.unlink(missing_ok=True)
    path = FeatureStore.open(planted / "cache").path_of(KEY)
    environment = {**os.environ, "HDF5_PLUGIN_PATH": str(plugins), "ACTED": str(acted)}
    command = [sys.executable, "-c", program, str(path), str(planted / "cache")]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, acted.exists()


def test_the_plugin_would_act_in_a_reader_that_lets_hdf5_load_it(planted, plugins):
    assert said(PLAIN, planted, plugins)[1]


def test_no_plugin_acts_when_a_feature_file_is_read(planted, plugins):
    text, acted = said(OURS, planted, plugins)
    assert not acted
    assert text.count("is damaged: /tensors/x is packed with filters") == 3
