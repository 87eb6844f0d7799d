from __future__ import annotations

import errno
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cogcache.errors import CacheError, ConfigError, CorruptFeaturesError, FeaturesError
from cogcache.store.store import FeatureStore

KEY = "ab" * 32
OTHER_KEY = "cd" * 32
PATTERNS = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
COMPRESSIONS = ("none", "zstd", "blosc2")


def numbers(*shape):
    return torch.randn(shape, generator=torch.manual_seed(0))


TENSORS = {
    "features": numbers(3, 4, 5).to(torch.bfloat16),
    "grid": torch.tensor([[3, 2, 2]]),
    "scalar": torch.tensor(7),
}
ATTRIBUTES = {"family": "tiny", "start_s": 0.0, "end_s": None, "sampling": {"max_frames": 3}}


@pytest.fixture
def store(tmp_path):
    return FeatureStore.create_or_open(tmp_path / "cache")


@pytest.fixture
def sealed(store):
    store.write(KEY, TENSORS, ATTRIBUTES, b"a JPEG")
    return store


def files_in(store):
    found = (path for path in store.root.rglob("*") if path.is_file())
    return sorted(path.relative_to(store.root).as_posix() for path in found)


def assert_as_sealed(stored):
    assert stored.attributes == ATTRIBUTES
    assert stored.thumbnail == b"a JPEG"
    assert list(stored.tensors) == sorted(TENSORS)
    assert all(torch.equal(stored.tensors[name], TENSORS[name]) for name in TENSORS)


# ---- what is written is what is read ----------------------------------------------------------


def test_read_gives_what_was_written(sealed):
    assert_as_sealed(sealed.read(KEY))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    "tensor",
    [
        numbers(24, 66, 64).to(torch.bfloat16),
        numbers(7, 50_000),  # blocks of five rows, the last one short
        numbers(300_000).to(torch.float64),
        torch.zeros(2_000_000),
        numbers(2, 3).to(torch.float16),
        numbers(100, 1000) > 0,
        torch.arange(100_000).to(torch.uint8).reshape(10, -1),
        torch.tensor([0, 65535]).to(torch.uint16),
        torch.tensor([-(2**63), 2**63 - 1]),
        torch.tensor(-0.0, dtype=torch.bfloat16),
        torch.tensor(True),
        torch.zeros(0, 66, 8),
        torch.zeros(3, 0),
        numbers(4, 6).T,
    ],
    ids=lambda tensor: f"{str(tensor.dtype)[6:]}-{'x'.join(map(str, tensor.shape)) or 'scalar'}",
)
def test_tensor_of_any_dtype_and_shape_comes_back_bit_by_bit(store, tensor, compression):
    store.write(KEY, {"features": tensor}, {}, compression=compression)
    read = store.read(KEY).tensors["features"]
    assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
    assert (
        read.numpy(force=True).tobytes() == tensor.numpy().tobytes()
        if (read.dtype != torch.bfloat16)
        else torch.equal(read.view(torch.int16), tensor.view(torch.int16))
    )


def test_tensor_that_needs_a_gradient_is_written(store):
    store.write(KEY, {"features": torch.ones(2, requires_grad=True)}, {})
    assert store.read(KEY).tensors["features"].tolist() == [1, 1]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_finite_bfloat16_pattern_is_exact(store, compression):
    finite = PATTERNS[PATTERNS.isfinite()].repeat(2)  # enough to be compressed
    store.write(KEY, {"features": finite}, {}, compression=compression)
    read = store.read(KEY).tensors["features"]
    assert len(finite) == 2 * (65536 - 2 * 128)
    assert torch.equal(read.view(torch.int16), finite.view(torch.int16))


def test_every_bfloat16_pattern_that_is_not_finite_is_refused(store):
    for pattern in PATTERNS[~PATTERNS.isfinite()]:
        tensor = torch.tensor([1.0, pattern, -1.0], dtype=torch.bfloat16)
        with pytest.raises(FeaturesError, match="1 of the 3 numbers of 'features' are NaN or inf"):
            store.write(KEY, {"features": tensor}, {})
    assert files_in(store) == ["cogcache.toml"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_number_that_is_not_finite_fails_the_clip(store, dtype, value):
    with pytest.raises(FeaturesError) as caught:
        store.write(KEY, {"features": torch.tensor([[0.0, value]], dtype=dtype)}, {})
    assert caught.value.reason == "not_finite"


def test_dtype_that_the_format_lacks_is_an_error(store):
    with pytest.raises(TypeError, match="complex64; a feature file holds bfloat16"):
        store.write(KEY, {"features": torch.zeros(1, dtype=torch.complex64)}, {})


@pytest.mark.parametrize("name", ["", "a/b", ".", "..", "cogcache_key", "a b"])
def test_name_that_hdf5_or_the_format_gives_a_meaning_is_refused(store, name):
    with pytest.raises(ValueError, match="cannot be a name"):
        store.write(KEY, {name: torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="cannot be a name"):
        store.write(KEY, {}, {name: 1})


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**80, 0.1, 1e-320, -1.5),
        *("", "text", "é\n", "json:[1]", "json:", "ends in\0", "\0", "x" * 200_000),
        *(
            [],
            {},
            [0.0, 0.96],
            [1, 2],
            [1, 2.0],
            [True],
            ["a", None],
            {"a": {"b": [1, {}]}, "é": ""},
        ),
        [0.1] * 20_000,
        list(range(20_000)),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_attribute_comes_back_with_its_type(store, value):
    store.write(KEY, {}, {"value": value})
    assert repr(store.describe(KEY)) == repr({"value": value})


def test_many_attributes_come_back(store):
    attributes = {f"name{number}": number for number in range(200)}
    store.write(KEY, {}, attributes)
    assert store.describe(KEY) == attributes


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (math.nan, ValueError),
        (b"bytes", TypeError),
        ({"a": Path("x")}, TypeError),
        ("\udce9", ConfigError),
    ],
)
def test_attribute_that_no_key_can_hold_is_refused(store, value, error):
    with pytest.raises(error):
        store.write(KEY, TENSORS, {"value": value})
    assert files_in(store) == ["cogcache.toml"]


def test_clip_without_thumbnail_has_none(store):
    store.write(KEY, TENSORS, {})
    assert store.read(KEY).thumbnail is None


def test_single_tensor_can_be_read(sealed):
    assert list(sealed.read(KEY, ["grid"]).tensors) == ["grid"]


def test_unknown_tensor_is_a_key_error(sealed):
    with pytest.raises(KeyError, match="no tensor 'latents'"):
        sealed.read(KEY, ["grid", "latents"])


def test_equal_features_make_equal_files(store, tmp_path):
    other = FeatureStore.create_or_open(tmp_path / "other")
    large = {"features": numbers(2, 300_000)}
    store.write(KEY, large, ATTRIBUTES, b"a JPEG")
    time.sleep(1.1)  # HDF5 would note the time in seconds
    other.write(KEY, large, dict(reversed(ATTRIBUTES.items())), b"a JPEG")
    assert store.path_of(KEY).read_bytes() == other.path_of(KEY).read_bytes()


# ---- other readers ------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_plain_h5py_shows_bfloat16_as_numbers(store, compression):
    features = numbers(3, 200, 66).to(torch.bfloat16)
    store.write(KEY, {"features": features}, {}, compression=compression)
    with h5py.File(store.path_of(KEY), "r") as file:
        shown = file["tensors/features"][()]
    assert shown.dtype == np.float32
    assert (shown == features.float().numpy()).all()


def test_attributes_are_readable_in_plain_h5py(sealed):
    with h5py.File(sealed.path_of(KEY), "r") as file:
        attributes = dict(file.attrs)
    assert attributes["family"] == b"tiny"
    assert attributes["start_s"] == 0.0
    assert attributes["sampling"] == b'json:{"max_frames": 3}'


def test_large_tensors_are_chunked_by_frame_and_compressed_unless_told_otherwise(store):
    features = numbers(4, 66, 4096).to(torch.bfloat16)
    size_bytes = store.write(KEY, {"features": features}, {})
    with h5py.File(store.path_of(KEY), "r") as file:
        assert file["tensors/features"].chunks == (1, 66, 4096)
    assert size_bytes == store.path_of(KEY).stat().st_size
    assert size_bytes < 0.75 * features.nbytes


@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_tensor_of_a_single_block_is_compressed(store, compression):
    features = numbers(3, 20, 2000).to(torch.bfloat16)
    store.write(KEY, {"features": features}, {}, compression=compression)
    assert store.path_of(KEY).stat().st_size < 0.75 * features.nbytes


def test_reading_bfloat16_is_quicker_than_the_converting_read(store):
    features = numbers(8, 66, 4096).to(torch.bfloat16)
    store.write(KEY, {"features": features}, {}, compression="none")

    def converting():
        with h5py.File(store.path_of(KEY), "r") as file:
            return file["tensors/features"][()]

    assert 3 * seconds(lambda: store.read(KEY)) < seconds(converting)


def seconds(action):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


# ---- damage -------------------------------------------------------------------------------------


def test_flipped_bit_is_found_or_changes_nothing_that_is_read(sealed):
    path = sealed.path_of(KEY)
    content = bytearray(path.read_bytes())
    found = 0
    for position in range(0, len(content), 11):
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        try:
            assert_as_sealed(sealed.read(KEY))
        except CorruptFeaturesError:
            found += 1
        content[position] ^= 1 << position % 8
    assert found > 100


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_flipped_bit_in_a_tensor_is_found(store, compression):
    store.write(KEY, {"features": numbers(3, 200_000)}, {}, compression=compression)
    path = store.path_of(KEY)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFeaturesError, match=rf"{KEY}\.h5 is damaged"):
        store.read(KEY)


def test_damaged_tensor_does_not_keep_another_from_being_read(store):
    store.write(KEY, {"a": numbers(50_000), "b": numbers(50)}, {}, compression="none")
    path = store.path_of(KEY)
    content = path.read_bytes()
    start = content.index(numbers(50_000).numpy()[:4].tobytes())
    path.write_bytes(content[:start] + b"\1\2\3\4" + content[start + 4 :])
    assert torch.equal(store.read(KEY, ["b"]).tensors["b"], numbers(50))
    with pytest.raises(CorruptFeaturesError, match="'a'"):
        store.read(KEY)


@pytest.mark.parametrize("left", [0, 1, 100, 0.5, 0.99])
def test_truncated_file_is_found(sealed, left):
    path = sealed.path_of(KEY)
    content = path.read_bytes()
    path.write_bytes(content[: left if isinstance(left, int) else int(left * len(content))])
    with pytest.raises(CorruptFeaturesError):
        sealed.read(KEY)
    with pytest.raises(CorruptFeaturesError):
        sealed.describe(KEY)


def change(path, how):
    with h5py.File(path, "r+") as file:
        how(file)


def forge_shape(file):
    del file["tensors/grid"]
    file.create_dataset("tensors/grid", (2**40,), np.int64)


def forge_chunks(file):
    del file["tensors/grid"]
    file.create_dataset("tensors/grid", (2**40,), np.int64, chunks=(2**20,))


def link_elsewhere(file):
    file.move("tensors/grid", "elsewhere")
    file["tensors/grid"] = h5py.SoftLink("/elsewhere")


def forge_external(file):
    del file["tensors/grid"]
    file.create_dataset("tensors/grid", (1, 3), np.int64, external=[("secret", 0, 24)])


@pytest.mark.parametrize(
    "how",
    [
        lambda file: file.attrs.modify("start_s", 1.0),
        lambda file: file.attrs.create("new", 1),
        lambda file: file.attrs.pop("end_s"),
        lambda file: file.attrs.pop("cogcache_sha256"),
        lambda file: file.attrs.modify("cogcache_format", 2),
        lambda file: file["thumbnail"].write_direct(np.frombuffer(b"A jpeg", np.uint8)),
        lambda file: file.pop("thumbnail"),
        lambda file: file.pop("tensors/grid"),
        lambda file: file.pop("tensors"),
        lambda file: file.move("tensors/grid", "tensors/grit"),
        lambda file: file.create_dataset("tensors/more", data=[1]),
        link_elsewhere,
    ],
)
def test_any_change_is_found_without_reading_a_tensor(sealed, how):
    change(sealed.path_of(KEY), how)
    with pytest.raises(CorruptFeaturesError):
        sealed.describe(KEY)


@pytest.mark.parametrize("how", [forge_shape, forge_chunks, forge_external])
def test_shape_that_the_file_cannot_fill_is_refused_before_memory_is_taken(sealed, how):
    path = sealed.path_of(KEY)
    with h5py.File(path, "r") as file:
        digest = file["tensors/grid"].attrs["sha256"]
    change(path, how)
    change(path, lambda file: file["tensors/grid"].attrs.create("sha256", digest))
    with pytest.raises(CorruptFeaturesError, match="/tensors/grid is too large"):
        sealed.read(KEY)


def test_file_under_the_name_of_another_key_is_found(sealed):
    other = sealed.path_of(OTHER_KEY)
    other.parent.mkdir()
    other.write_bytes(sealed.path_of(KEY).read_bytes())
    with pytest.raises(CorruptFeaturesError, match=f"bears the key {KEY}"):
        sealed.read(OTHER_KEY)


def test_disk_that_fails_is_not_taken_for_a_damaged_file(sealed, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(CacheError, match=r"cannot be read: .*Input/output error") as caught:
        sealed.read(KEY)
    assert not isinstance(caught.value, CorruptFeaturesError)


def test_quarantined_file_can_be_made_anew(sealed):
    content = sealed.path_of(KEY).read_bytes()
    moved = sealed.quarantine(KEY, "its SHA-256 is another")
    assert moved == sealed.root / "quarantine" / f"{KEY}.h5"
    assert moved.read_bytes() == content
    assert moved.with_suffix(".txt").read_text() == "its SHA-256 is another\n"
    assert KEY not in sealed
    sealed.write(KEY, TENSORS, ATTRIBUTES, b"a JPEG")
    assert_as_sealed(sealed.read(KEY))


def test_quarantine_keeps_every_file(sealed):
    first = sealed.quarantine(KEY, "one")
    sealed.write(KEY, TENSORS, {})
    second = sealed.quarantine(KEY, "two")
    assert first.exists()
    assert second.name == f"{KEY}-2.h5"
    assert second.with_suffix(".txt").read_text() == "two\n"


def test_absent_features_cannot_be_quarantined_or_read(store):
    for action in (store.read, store.describe, lambda key: store.quarantine(key, "")):
        with pytest.raises(CacheError, match="holds no features"):
            action(KEY)


# ---- whole or absent ----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize(
    ("where", "name"), [(os, "fsync"), (Path, "replace"), (h5py, "File"), (Path, "open")]
)
def test_write_that_fails_leaves_nothing(store, monkeypatch, where, name, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(where, name, fail)
    with pytest.raises((KeyboardInterrupt, CacheError, OSError)):
        store.write(KEY, TENSORS, {})
    monkeypatch.undo()
    assert files_in(store) == ["cogcache.toml"]
    assert KEY not in store
    store.write(KEY, TENSORS, ATTRIBUTES, b"a JPEG")
    assert_as_sealed(store.read(KEY))


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from cogcache.errors import CacheError
from cogcache.store import FeatureStore
store = FeatureStore.create_or_open(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    store.write("ab" * 32, {"features": torch.ones(100_000)}, {}, compression="none")
except CacheError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_full_disk_is_an_error_with_a_reason_and_leaves_nothing(tmp_path):
    run = [sys.executable, "-c", LIMITED, str(tmp_path / "cache")]
    said = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.search(rf"cannot write .*{KEY}\.h5: File too large", said)
    assert files_in(FeatureStore.open(tmp_path / "cache")) == ["cogcache.toml"]


def test_file_that_does_not_read_back_is_never_sealed(store, monkeypatch):
    real = os.fsync

    def damage(descriptor):
        real(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        if path.suffix == ".partial":
            content = path.read_bytes()
            position = content.index(TENSORS["grid"].numpy().tobytes())
            path.write_bytes(content[:position] + b"\7" + content[position + 1 :])

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(CorruptFeaturesError, match="'grid' is not what was written"):
        store.write(KEY, TENSORS, {})
    assert files_in(store) == ["cogcache.toml"]


def test_file_and_every_new_folder_reach_the_disk_before_write_returns(store, monkeypatch):
    synced, real = [], os.fsync

    def note(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    store.write(KEY, TENSORS, {})
    assert [re.sub(r"^\..*\.partial$", "the file", name) for name in synced] == [
        "cache",
        "features",
        "the file",
        "ab",
    ]


def test_sealed_file_is_never_touched_again(sealed):
    before = sealed.path_of(KEY).stat()
    size_bytes = sealed.write(KEY, {"features": torch.ones(3)}, {})
    after = sealed.path_of(KEY).stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert size_bytes == before.st_size
    assert_as_sealed(sealed.read(KEY))


KILLED = """
import os, sys, torch
from pathlib import Path
from cogcache.store import FeatureStore
store = FeatureStore.create_or_open(Path(sys.argv[1]))
Path.replace = lambda *_: os._exit(9)
store.write("ab" * 32, {"features": torch.ones(3)}, {})
"""


def test_sweep_removes_what_a_dead_writer_left_and_keeps_what_lives(tmp_path):
    run = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(run, check=False, timeout=120).returncode == 9
    store = FeatureStore.open(tmp_path)
    (left,) = (tmp_path / "features" / "ab").iterdir()
    host = left.name.split(".")[-4]
    ours = left.with_name(f".{KEY}.h5.{host}.{os.getpid()}.0.partial")
    others = left.with_name(f".{KEY}.h5.elsewhere.1.0.partial")
    old = left.with_name(f".{KEY}.h5.elsewhere.1.1.partial")
    reused = left.with_name(f".{KEY}.h5.{host}.{os.getpid()}.1.partial")
    for path in (ours, others, old, reused):
        path.touch()
    for path in (old, reused):
        os.utime(path, (0, 0))
    assert KEY not in store
    assert sorted(store.remove_unfinished()) == sorted([left, old, reused])
    assert ours.exists()
    assert others.exists()


def test_processes_that_write_one_key_at_a_time_leave_one_file(store):
    program = (
        "import sys, torch; from pathlib import Path; from cogcache.store import FeatureStore\n"
        "store = FeatureStore.open(Path(sys.argv[1]))\n"
        "for n in range(40): store.write(f'{n:064x}', {'features': torch.ones(1000)}, {})"
    )
    run = [sys.executable, "-c", program, str(store.root)]
    writers = [subprocess.Popen(run) for _ in range(2)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert len(files_in(store)) == 41
    assert all(store.read(key).tensors["features"].sum() == 1000 for key in store)


# ---- the folder ---------------------------------------------------------------------------------


def test_new_cache_holds_only_its_mark(store):
    assert files_in(store) == ["cogcache.toml"]
    assert "format = 1\n" in (store.root / "cogcache.toml").read_text()


def test_feature_file_is_named_by_its_key_and_fanned_out(sealed):
    assert files_in(sealed) == ["cogcache.toml", f"features/ab/{KEY}.h5"]
    assert sealed.path_of(KEY) == sealed.root / "features" / "ab" / f"{KEY}.h5"


def test_keys_are_those_of_the_sealed_files(sealed):
    sealed.write(OTHER_KEY, TENSORS, {})
    (sealed.root / "features" / "ab" / "notes.txt").touch()
    (sealed.root / "features" / "ab" / f".{KEY}.h5.host.1.2.partial").touch()
    (sealed.root / "features" / "ab" / f"{OTHER_KEY}.h5").touch()  # not where it belongs
    assert list(sealed.keys()) == [KEY, OTHER_KEY]
    assert len(sealed) == 2
    assert KEY in sealed
    assert "ef" * 32 not in sealed


@pytest.mark.parametrize("key", ["", "ab", "AB" * 32, "../" + "a" * 61, "zz" * 32])
def test_key_that_is_no_digest_is_refused(store, key):
    with pytest.raises(ValueError, match="not a feature key"):
        store.path_of(key)


def test_cache_that_is_there_is_opened_again(sealed):
    assert_as_sealed(FeatureStore.create_or_open(sealed.root).read(KEY))
    assert_as_sealed(FeatureStore.open(sealed.root).read(KEY))


def test_disk_mounted_for_a_cache_may_hold_lost_and_found(tmp_path):
    (tmp_path / "lost+found").mkdir()
    FeatureStore.create_or_open(tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: root.write_text("x"), "is a file, not a folder"),
        (lambda root: (root.mkdir(), (root / "film.mp4").touch()), "holds film.mp4"),
        (lambda root: (root.mkdir(), (root / "cogcache.toml").mkdir()), "cannot be read"),
        (lambda root: (root.mkdir(), (root / "cogcache.toml").write_text("x")), "cannot be read"),
        (
            lambda root: (root.mkdir(), (root / "cogcache.toml").write_text("format = 2")),
            "is of format 2; this version reads 1",
        ),
        (lambda root: (root.mkdir(), (root / "cogcache.toml").write_text("")), "format None"),
    ],
)
def test_what_is_no_cache_of_ours_is_refused_and_left_alone(tmp_path, make, said):
    root = tmp_path / "thing"
    make(root)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CacheError, match=re.escape(said)):
        FeatureStore.create_or_open(root)
    assert sorted(tmp_path.rglob("*")) == before


def test_cache_that_is_not_there_is_not_made_by_opening_it(tmp_path):
    with pytest.raises(CacheError, match="there is no cache in"):
        FeatureStore.open(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_folder_below_a_file_is_an_error_with_a_reason(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot write"):
        FeatureStore.create_or_open(tmp_path / "file" / "cache")


def test_importing_the_store_loads_neither_torch_nor_hdf5plugin():
    program = "import cogcache.store, sys; print({'torch', 'hdf5plugin'} & set(sys.modules))"
    run = [sys.executable, "-c", program]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"
