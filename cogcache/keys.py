"""What features and captions depend on, as keys that can say where two of them differ."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final, Literal, TypeAlias

from cogcache.errors import ConfigError

Field: TypeAlias = "str | int | float | bool | Mapping[str, Field] | Sequence[Field] | None"
"""What a key or a feature file's attributes may hold."""


def canonical_bytes(fields: Mapping[str, Field]) -> bytes:
    """Return the encoding of ``fields``; it does not depend on their order.

    Raises:
        ConfigError: a text holds bytes that are not UTF-8.
        TypeError: a value is none of the types that ``Field`` names.
        ValueError: a number is NaN or infinite.
    """
    return _encode(fields)


def digest(fields: Mapping[str, Field]) -> str:
    """Return the SHA-256 of the encoding of ``fields``, 64 hexadecimal digits.

    Raises:
        ConfigError: a text holds bytes that are not UTF-8.
        TypeError: a value is none of the types that ``Field`` names.
        ValueError: a number is NaN or infinite.
    """
    return hashlib.sha256(canonical_bytes(fields)).hexdigest()


class Template:
    """Digests of mappings that share most of their fields, which are encoded once.

    Args:
        fields: those that all of them share.
        varying: names of the others.
    """

    def __init__(self, fields: Mapping[str, Field], varying: Sequence[str]) -> None:
        self._parts = [
            (_encode(name), None if name in varying else _encode(fields[name]), name)
            for name in sorted({*fields, *varying})
        ]

    def digest(self, values: Mapping[str, Field]) -> str:
        """Return what `digest` returns for the shared fields and ``values`` together."""
        payload = b"".join(
            name + (_encode(values[plain]) if value is None else value)
            for name, value, plain in self._parts
        )
        return hashlib.sha256(b"M" + struct.pack(">Q", len(payload)) + payload).hexdigest()


def _encode(value: Field) -> bytes:
    if type(value) is str:  # most are, and the patterns below take three times as long
        payload = _encode_text(value)
        return b"S" + struct.pack(">Q", len(payload)) + payload
    return _encode_other(value)


def _encode_other(value: Field) -> bytes:
    tag, payload = b"N", b""
    match value:
        case None:
            pass
        case bool():  # before int: True is one
            tag, payload = b"B", b"1" if value else b"0"
        case int():
            tag, payload = b"I", str(int(value)).encode()
        case float():
            tag, payload = b"D", _encode_float(value)
        case str():
            tag, payload = b"S", _encode_text(value)
        case Mapping():
            tag, payload = b"M", b"".join(_encode(part) for pair in _sorted(value) for part in pair)
        case Sequence() if not isinstance(value, (bytes, bytearray, memoryview)):
            tag, payload = b"L", b"".join(_encode(item) for item in value)
        case _:
            raise TypeError(f"{value!r} of type {type(value).__name__} has no canonical encoding")
    return tag + struct.pack(">Q", len(payload)) + payload


def _sorted(value: Mapping[str, Field]) -> list[tuple[str, Field]]:
    # By the names alone: values need not have an order. Code points sort as their UTF-8 does.
    return [(name, value[name]) for name in sorted(value)]


def _encode_float(value: float) -> bytes:
    if not math.isfinite(value):
        raise ValueError(f"{value} has no canonical encoding: a number must be finite")
    return struct.pack(">d", value or 0.0)  # -0.0 equals 0.0, so their encodings do


def _encode_text(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        problem = f"the text {text!r} holds bytes that are not UTF-8"
        raise ConfigError(problem, "write it in UTF-8") from error


__all__ = [
    "CHANGES",
    "CaptionKey",
    "Change",
    "FeatureKey",
    "Field",
    "SummaryKey",
    "canonical_bytes",
    "differences",
    "digest",
]


class _Key:
    """A frozen dataclass whose digest is its name."""

    def fields(self) -> dict[str, Field]:
        """Return every field by its name, as it goes into the digest."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the fields, 64 hexadecimal digits.

        Raises:
            ConfigError: a text among the fields holds bytes that are not UTF-8.
        """
        return digest(self.fields())


@dataclass(frozen=True, kw_only=True)
class FeatureKey(_Key):
    """All that the features of one clip depend on."""

    video_digest: str
    """SHA-256 of the bytes of the video file."""
    start_s: float
    """Where the clip begins, in seconds of the whole video."""
    end_s: float | None
    """Where it ends; None: at the end of the video."""
    sampling: Mapping[str, Field]
    """Which frames are taken."""
    preprocessing: Mapping[str, Field]
    """What becomes of the frames before the vision half sees them."""
    family: str
    vision_digest: str
    """Digest of the weights of the vision half."""
    cache_point: str
    """Which output of the vision half is kept."""
    dtype: str
    """The type that the vision half computes in, and whether its blocks are compiled."""
    epoch: int
    """The family's: raised whenever the code that makes the features changes what it makes."""

    def __post_init__(self) -> None:
        # 10 and 10.0 seconds are the same clip, yet an int and a float have different encodings.
        object.__setattr__(self, "start_s", float(self.start_s))
        object.__setattr__(self, "end_s", None if self.end_s is None else float(self.end_s))


@dataclass(frozen=True, kw_only=True)
class CaptionKey(_Key):
    """All that one caption depends on."""

    feature_key: str
    language_digest: str
    """Digest of the weights of the language half."""
    quantization: Mapping[str, Field]
    prompt: str
    layout: str
    generation: Mapping[str, Field]
    rotary_dtype: str | None
    epoch: int
    """The family's `layout_epoch`: raised whenever the code that makes ids, positions and rates of
    features and a prompt changes what it makes."""


@dataclass(frozen=True, kw_only=True)
class SummaryKey(CaptionKey):
    """All that one caption depends on that is made from others.

    Its `feature_key` is the one that the summed up part of the video has as a clip.
    """

    video_digest: str
    captions: str
    """Digest of the keys of the captions that go in, in their order."""
    num_captions: int
    summary_tokens: int
    """Most tokens of what is asked at once."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of what the code makes, for which some families' keys changed.

    Args:
        of: what is made otherwise: features, or what a prompt is laid out as around them.
        epoch: the first epoch that has it, in keys of features or of captions.
        families: whose keys changed.
        what: what was wrong before, for a reader.
    """

    of: Literal["features", "captions"]
    epoch: int
    families: tuple[str, ...]
    what: str


CHANGES: Final = (
    Change(
        "captions",
        3,
        ("qwen2_vl", "ernie4_5_vl_moe"),
        "the text behind a video of many frames stood amid the video's positions",
    ),
    Change(
        "captions",
        3,
        ("qwen2_5_vl",),
        "the text behind a video stood amid the video's positions, and the rate of the frames was "
        "not the published one",
    ),
    Change(
        "captions",
        3,
        ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
        "the rate of the frames was not the published one",
    ),
    Change(
        "captions",
        3,
        ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
        "two tokens too many stood around the video",
    ),
    Change(
        "features",
        3,
        ("smolvlm",),
        "frames were made smaller than published and blown up again",
    ),
)
"""What versions before made otherwise. The epoch of what is not here never changed."""


def epoch_after(changes_of: str, family: str, first: int) -> int:
    """Return the epoch of today's features or captions of a family.

    Args:
        changes_of: `features` or `captions`.
        family: its name.
        first: the epoch before any change that `CHANGES` names.
    """
    epochs = [each.epoch for each in CHANGES if each.of == changes_of and family in each.families]
    return max([first, *epochs])


def computes_in(dtype: str, *, compiled: bool) -> str:
    """Return how the vision half computes, as a feature key says it."""
    return f"{dtype}, compiled" if compiled else dtype


def differences(made_with: Mapping[str, Field], wanted: Mapping[str, Field]) -> list[str]:
    """Say in which fields two keys differ, one line a field, nested names dotted.

    Args:
        made_with: the fields of what is in the cache.
        wanted: the fields of what this run asks for.

    Returns:
        Lines such as ``"sampling.max_frames is 24 in the cache, 48 in this run"``, by name.
    """
    cached, asked = dict(_leaves(made_with)), dict(_leaves(wanted))
    return [
        f"{name} is {_shown(name, cached)} in the cache, {_shown(name, asked)} in this run"
        for name in sorted({*cached, *asked})
        if name not in cached or name not in asked or not _equal(cached[name], asked[name])
    ]


def _leaves(mapping: Mapping[str, Field], prefix: str = "") -> list[tuple[str, Field]]:
    leaves: list[tuple[str, Field]] = []
    for name, value in mapping.items():
        if isinstance(value, Mapping) and value:
            leaves += _leaves(value, f"{prefix}{name}.")
        else:
            leaves.append((prefix + name, value))
    return leaves


def _equal(one: Field, other: Field) -> bool:
    # Not == alone: keys with 1, 1.0 and True have different digests, so it must be said. What is
    # the same text or number is found first: a million clips are compared before a run begins.
    if type(one) is type(other) and isinstance(one, str | int | None) and one == other:
        return True
    return canonical_bytes({"": one}) == canonical_bytes({"": other})


def _shown(name: str, leaves: Mapping[str, Field]) -> str:
    return repr(leaves[name]) if name in leaves else "absent"
