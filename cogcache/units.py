"""Bytes, seconds and odd names as text; the only place that divides by 1024³."""

from __future__ import annotations

import re

from cogcache.errors import ConfigError

KIB, MIB, GIB = 1024, 1024**2, 1024**3
_SIZES = {"B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def format_bytes(size_bytes: float) -> str:
    """Return ``size_bytes`` with a binary unit: ``"8.34 GiB"``, ``"12.4 MiB"``, ``"512 B"``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(size_bytes) >= 0.9995 * 1000 / 1024 * unit:  # never 1e+03 of the unit below
            return f"{size_bytes / unit:.3g} {name}"
    return f"{size_bytes:.0f} B"


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as ``"8GiB"``, ``"500 MB"`` or ``"1024"`` means.

    Raises:
        ConfigError: the text is not a number with one of the units B, KiB, MiB, GiB, KB, MB, GB.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or (match[2] or "B").upper() not in _SIZES:
        raise ConfigError(f"{text!r} is not a size", "write it like 8GiB, 500MiB or 1000000")
    return int(float(match[1]) * _SIZES[(match[2] or "B").upper()])


def format_seconds(duration_s: float) -> str:
    """Return a duration as ``"0.42 s"``, ``"12.3 s"``, ``"3 min 20 s"`` or ``"2 h 05 min"``."""
    if duration_s < 60:
        return f"{duration_s:.3g} s"
    minutes, seconds = divmod(round(duration_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_clock(time_s: float) -> str:
    """Return a place in a video as ``"0:00:24"``, whole seconds rounded down."""
    minutes, seconds = divmod(int(time_s), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def printable(text: str) -> str:
    """Return a text on one line, in which no control character is a command to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
