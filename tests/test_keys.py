from __future__ import annotations

import hashlib
import math
import re
import struct
from collections import OrderedDict
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from cogcache.errors import ConfigError
from cogcache.keys import CaptionKey, FeatureKey, Template, canonical_bytes, differences, digest

FEATURES = FeatureKey(
    video_digest="11" * 32,
    start_s=0.0,
    end_s=60.0,
    sampling={"strategy": "per_second", "max_frames": 24},
    preprocessing={"image_size": 224, "mean": [0.5, 0.25]},
    family="cogvlm2",
    vision_digest="22" * 32,
    cache_point="projected",
    dtype="bfloat16",
    epoch=1,
)
CAPTION = CaptionKey(
    feature_key="33" * 32,
    language_digest="44" * 32,
    quantization={"quantization": "nf4", "double_quant": True},
    prompt="Please describe this video in detail.",
    layout="chat",
    generation={"do_sample": False, "temperature": 1.0},
    rotary_dtype="bfloat16",
    epoch=1,
)

# Pairs of these look alike once types or lengths are lost.
UNLIKE = [
    *(None, False, True, 0, 1, 1.0, -1, 10, 2**70, -(2**70), 1e300, 5e-324),
    *("", "0", "1", "1.0", "10", "True", "None", "é", "e\u0301"),
    *([], [1], ["1"], [[1]], [1, 1], [11], [None], [[]], [{}], ["a", 1], ["a", 1, "b", 2]),
    *(["a", "b"], ["ab"], ["ab", ""], ["", "ab"]),
    *({}, {"a": 1}, {"a": "1"}, {"a": {"b": 1}}, {"a.b": 1}, {"a": None}, {"": {"a": 1}}),
    {"a": 1, "b": 2},
]


def test_no_two_different_values_share_an_encoding():
    encodings = [(canonical_bytes({"value": value}), value) for value in UNLIKE]
    shared = [(a, b) for (x, a), (y, b) in combinations(encodings, 2) if x == y]
    assert shared == []


def test_order_of_the_names_does_not_matter():
    one = OrderedDict([("a", {"x": 1, "y": 2}), ("b", 2)])
    other = OrderedDict([("b", 2), ("a", {"y": 2, "x": 1})])
    assert canonical_bytes(one) == canonical_bytes(other)


@pytest.mark.parametrize(("one", "other"), [((1, 2), [1, 2]), (0.0, -0.0)])
def test_equal_values_share_an_encoding(one, other):
    assert canonical_bytes({"value": one}) == canonical_bytes({"value": other})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_number_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="must be finite"):
        digest({"value": [value]})


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, Path("x"), object])
def test_value_of_another_type_is_refused(value):
    with pytest.raises(TypeError, match="no canonical encoding"):
        digest({"value": value})


def test_text_that_is_not_utf8_is_refused_with_a_reason():
    with pytest.raises(ConfigError, match="not UTF-8"):
        digest({"prompt": "caf\udce9"})


def test_digest_is_sha256_in_full_length():
    assert digest({"a": 1}) == hashlib.sha256(canonical_bytes({"a": 1})).hexdigest()
    assert re.fullmatch("[0-9a-f]{64}", FEATURES.digest)


def encode_as_documented(value):
    """Section "Canonical encoding" of docs/format.md, written a second time from its words."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-8"))
        parts = [part for name in names for part in (name, value[name])]
        tag, payload = b"M", b"".join(map(encode_as_documented, parts))
    elif isinstance(value, list):
        tag, payload = b"L", b"".join(map(encode_as_documented, value))
    else:
        tag, payload = {
            "NoneType": lambda: (b"N", b""),
            "bool": lambda: (b"B", b"1" if value else b"0"),
            "int": lambda: (b"I", f"{value:d}".encode("ascii")),
            "float": lambda: (b"D", struct.pack("!d", value)),
            "str": lambda: (b"S", value.encode("utf-8")),
        }[type(value).__name__]()
    return tag + len(payload).to_bytes(8, "big") + payload


@pytest.mark.parametrize("value", UNLIKE)
def test_encoding_is_the_documented_one(value):
    fields = {"value": value, "\uffff": 1, "\U0001f600": 2}
    assert canonical_bytes(fields) == encode_as_documented(fields)


CHANGES = {
    "video_digest": "55" * 32,
    "start_s": 0.5,
    "end_s": None,
    "sampling": {"strategy": "per_second", "max_frames": 48},
    "preprocessing": {},
    "family": "qwen3_vl",
    "vision_digest": "66" * 32,
    "cache_point": "pooled",
    "dtype": "float32",
    "epoch": 2,
    "feature_key": "77" * 32,
    "language_digest": "88" * 32,
    "quantization": {"quantization": "none"},
    "prompt": "Please describe this video in detail. ",
    "layout": "base",
    "generation": {"do_sample": True, "temperature": 1.0},
    "rotary_dtype": None,
}


@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key in (FEATURES, CAPTION) for name in key.fields()]
)
def test_every_field_changes_the_digest_and_is_named_as_the_difference(key, name):
    changed = replace(key, **{name: CHANGES[name]})
    assert changed.digest != key.digest
    assert {
        line.split()[0].split(".")[0] for line in differences(key.fields(), changed.fields())
    } == {name}


def test_key_does_not_change_between_versions():
    # If this fails, every cache in the world is made anew: raise an epoch or a format on purpose.
    assert FEATURES.digest == "9babe4c7dbb8698c735d49af02a3c784c2a3bae9748af3ef43f83516341704ce"
    assert CAPTION.digest == "cda8563d86885e5fbd8ed7312b6c93207e232dd85334e1d66321d3bf00c06316"


def test_whole_and_fractional_seconds_make_the_same_key():
    assert replace(FEATURES, start_s=0, end_s=60).digest == FEATURES.digest


def test_equal_fields_have_no_differences():
    assert differences(FEATURES.fields(), FEATURES.fields()) == []
    assert differences({"mean": (0.5, 1)}, {"mean": [0.5, 1]}) == []


@pytest.mark.parametrize(
    ("made_with", "wanted", "line"),
    [
        ({"a": {"b": 24}}, {"a": {"b": 48}}, "a.b is 24 in the cache, 48 in this run"),
        ({"a": {"b": {"c": "x"}}}, {"a": {}}, "a.b.c is 'x' in the cache, absent in this run"),
        ({}, {"end_s": None}, "end_s is absent in the cache, None in this run"),
        ({"fps": 1}, {"fps": 1.0}, "fps is 1 in the cache, 1.0 in this run"),
        ({"bits": 1}, {"bits": True}, "bits is 1 in the cache, True in this run"),
        ({"a": {}}, {"a": None}, "a is {} in the cache, None in this run"),
    ],
)
def test_differences_name_the_field_and_both_values(made_with, wanted, line):
    assert line in differences(made_with, wanted)


def test_differences_come_by_name_and_one_a_field():
    lines = differences({"b": 1, "a": {"y": 1, "x": 1}}, {"b": 2, "a": {"y": 2, "x": 1}})
    assert [line.split()[0] for line in lines] == ["a.y", "b"]


def test_a_template_gives_the_digest_of_all_fields_together():
    shared = {"b": {"x": 1, "a": None}, "dtype": "bfloat16", "zeta": 0.5}
    template = Template(shared, ("a", "end_s", "video"))
    for values in ({"a": "é", "end_s": None, "video": "v"}, {"a": "", "end_s": 1.5, "video": ""}):
        assert template.digest(values) == digest({**shared, **values})
