"""What the cells of a catalog's rows may hold: by type, size and form, whoever wrote them.

SQLite keeps a value of any type in any column, and a catalog may come from anybody. A row that
passes here is one that every listing, page and export can show.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from cogcache.catalog.migrations import UNSPACED

Check: TypeAlias = Callable[[object], bool]

MAX_TEXT: Final = 2**20
"""Letters of a caption, a prompt or a message."""
MAX_UNSPACED: Final = 2**16
"""Letters of a caption in a script without blanks: each takes time with all that follow it."""
MAX_NAME: Final = 2**15
"""Letters of a path or a name: Linux has paths of up to 4,096 bytes, each three letters long."""
MAX_JSON: Final = 2**26
"""Letters of a JSON column; a timeline of a long run has some hundred thousand."""
MAX_DEPTH: Final = 32
_MAX_INTEGER: Final = 2**63 - 1
_MAX_REAL: Final = 1e15
_UNSPACED: Final = re.compile(f"[{UNSPACED}]")
_CUT: Final = re.compile(r"[a-z0-9:.,+-]{1,200}")
_KEY: Final = re.compile(r"[0-9a-f]{64}")


def _text(most: int, *, empty: bool = True) -> Check:
    def check(value: object) -> bool:
        return isinstance(value, str) and (empty or bool(value)) and len(value) <= most

    return check


def _caption(value: object) -> bool:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return False
    return len(value) <= MAX_UNSPACED or not _UNSPACED.search(value)


def _name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and "\0" not in value


def _word(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME and "\0" not in value


def _key(value: object) -> bool:
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def _integer(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_INTEGER


def _real(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= _MAX_REAL  # type: ignore[operator]


def _time(value: object) -> bool:
    if not isinstance(value, str) or len(value) > 40:
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _none_or(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _cut(value: object) -> bool:
    return isinstance(value, str) and _CUT.fullmatch(value) is not None


def _stage(value: object) -> bool:
    return value in ("extract", "caption")


def parsed(text: object) -> Any:
    """Return the value of a JSON text of a row.

    Raises:
        ValueError: it is none, or is nested too deep, or holds a number that is none.
    """
    if not isinstance(text, str) or len(text) > MAX_JSON:
        raise ValueError("it is no text of JSON")
    try:
        value = json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    # As deep as it has brackets at most: most texts need not be walked.
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError("it is nested too deep")
    return value


def json_text(value: object) -> str:
    """Return a value as the JSON text of a row; NaN and what is infinite become null.

    JSON has no such numbers, and training that fails has such a loss. Neither SQLite nor a browser
    would read the text, and the row would pass for a stranger's.
    """
    text = json.dumps(value, ensure_ascii=False, default=dict)
    if "NaN" not in text and "Infinity" not in text:
        return text
    return json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _json(fits: Check) -> Check:
    def check(text: object) -> bool:
        try:
            value = parsed(text)
        except ValueError:
            return False
        return fits(value) and ("\\u" not in str(text) or _is_utf8(value))

    return check


def _mapping(value: object) -> bool:
    return isinstance(value, dict)


def _is_utf8(value: object) -> bool:
    # JSON can hold halves of letters, which no database and no terminal takes.
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _flags(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(flag, str) for flag in value)


def _numbers(value: object) -> bool:
    return isinstance(value, dict) and all(_any_number(each) for each in value.values())


def _integers(value: object) -> bool:
    return isinstance(value, dict) and all(
        type(each) is int and abs(each) <= _MAX_INTEGER for each in value.values()
    )


def _any_number(value: object) -> bool:
    if type(value) is int:
        return abs(value) <= _MAX_INTEGER
    return type(value) is float and math.isfinite(value) and abs(value) <= _MAX_REAL


_SAMPLE: Final = ("time_s", "anonymous_bytes", "file_bytes", "device_bytes")
"""Of a sample of memory what pages and pictures draw."""


def _report(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    timeline = value.get("timeline", [])
    samples = isinstance(timeline, list) and all(
        isinstance(each, dict) and all(_any_number(each.get(name)) for name in _SAMPLE)
        for each in timeline
    )
    numbers = all(_any_number(value.get(name, 0)) for name in ("total_s", "base_bytes"))
    texts = all(isinstance(value.get(name) or "", str) for name in ("quantization", "stopped"))
    lists = _integers(value.get("bytes_by_shard", {})) and isinstance(
        value.get("versions", {}), dict
    )
    return samples and numbers and texts and lists and _training(value.get("training", {}))


def _training(value: object) -> bool:
    samples = value.get("samples", []) if isinstance(value, dict) else None
    return isinstance(samples, list) and all(isinstance(each, dict) for each in samples)


_SPAN: Final[dict[str, Check]] = {"video": _name, "start_s": _real, "end_s": _none_or(_real)}

_CAPTION: Final[dict[str, Check]] = {
    "caption_key": _text(256, empty=False),
    "feature_key": _key,
    **_SPAN,
    "prompt_name": _word,
    "prompt": _text(MAX_TEXT),
    "caption": _caption,
    "model": _word,
    "quantization": _word,
    "flags": _json(_flags),
    "num_tokens": _integer,
    "seconds": _real,
    "settings": _json(_mapping),
    "created_at": _time,
    "run": _none_or(_integer),
    "video_digest": _none_or(_name),
}

COLUMNS: Final[Mapping[str, Mapping[str, Check]]] = {
    "files": {
        "path": _name,
        "size_bytes": _integer,
        "mtime_ns": lambda value: type(value) is int,
        "inode": _text(64),
        "digest": _name,
    },
    "runs": {
        "run": _integer,
        "command": _name,
        "model": _word,
        "started_at": _time,
        "ended_at": _none_or(_time),
        "status": _word,
        "settings": _json(_mapping),
        "planned_peak_bytes": _none_or(_integer),
        "measured_peak_bytes": _none_or(_integer),
        "split": _json(_numbers),
        "counts": _json(_integers),
        "report": _json(_report),
        "uid": _none_or(_text(256, empty=False)),
    },
    "memory": {"name": _name, "value": _json(_mapping)},
    "videos": {
        "digest": _name,
        "path": _name,
        "duration_s": _none_or(_real),
        "fps": _none_or(_real),
        "width": _none_or(_integer),
        "height": _none_or(_integer),
        "total_num_frames": _none_or(_integer),
        "codec": _none_or(_word),
        "size_bytes": _integer,
        "offset_s": _none_or(_any_number),
    },
    "clips": {
        "feature_key": _key,
        "video_digest": _name,
        **_SPAN,
        "family": _word,
        "model": _word,
        "num_frames": _integer,
        "size_bytes": _integer,
        "decoder": _word,
        "settings": _json(_mapping),
        "created_at": _time,
        "run": _none_or(_integer),
    },
    "captions": {"id": _integer, **_CAPTION},
    "forgotten": {"id": _none_or(_integer), "forgotten_at": _time, **_CAPTION},
    "cuts": {"feature_key": _key, "cut": _cut},
    "failures": {
        **_SPAN,
        "stage": _stage,
        "feature_key": _none_or(_key),
        "reason": _word,
        "message": _text(MAX_TEXT),
        "tries": _integer,
        "first_at": _time,
        "last_at": _time,
        "run": _none_or(_integer),
        "video_digest": _none_or(_name),
    },
    "edits": {
        "uid": _text(256, empty=False),
        "caption_key": _text(256, empty=False),
        "edited_key": _key,
        "set_name": _name,
        "action": _word,
        "text": _none_or(_text(MAX_TEXT)),
        "was": _none_or(_text(MAX_TEXT)),
        "state": lambda value: value in ("", "accepted", "rejected"),
        "tags": _json(_flags),
        "author": _word,
        "created_at": _time,
        "batch": _text(256, empty=False),
        "undoes": _text(256),
    },
    "scores": {
        "name": _name,
        "feature_key": _text(64),
        "caption_key": _text(256),
        "score": _any_number,
        "model": _word,
        "prompt": _text(MAX_TEXT),
        "epoch": _integer,
        "details": _json(_mapping),
        "created_at": _time,
        "run": _none_or(_integer),
    },
}
"""By table and column: whether a value is one that cogcache may have written there."""


def misfits(table: str, row: Mapping[str, object]) -> list[str]:
    """Return the columns of a row whose values do not fit; those that are unknown are passed over.

    Args:
        table: its name.
        row: cells as SQLite gives them; JSON as the text that it is.

    Example:
        >>> misfits("memory", {"name": "a", "value": "[1"})
        ['value']
    """
    checks = COLUMNS.get(table, {})
    return [name for name, value in row.items() if name in checks and not checks[name](value)]
