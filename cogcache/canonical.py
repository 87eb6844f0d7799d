"""One encoding of plain values as bytes, so that equal values have equal digests everywhere.

docs/format.md specifies it. Every name and every value carries its type and its length; thus no
two different values share an encoding, and ``24``, ``24.0``, ``"24"`` and ``True`` all differ.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

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
