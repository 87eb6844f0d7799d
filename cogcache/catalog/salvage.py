"""Reads what is whole of a catalog that SQLite cannot read, page by page.

A row that bears its checksum proves itself. So the pages are read without the trees that lead to
them: https://www.sqlite.org/fileformat2.html says how rows lie in a page, and pages in the log.
Pages that are known to be free are passed by: rows that were deleted stay deleted.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from cogcache.catalog.whole_rows import Checksums, Column, key_fits

Value: TypeAlias = "int | float | Text | bytes | None"
_MAGIC: Final = b"SQLite format 3\0"
_HEADER: Final = 100
_TABLE_LEAF: Final = 13
_USUAL_PAGE_BYTES: Final = 4096
_LARGEST_BYTES: Final = 1 << 28
"""Of a row; a longer one is a length that is damaged."""
_WAL_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_JSON: Final = frozenset(
    {"settings", "flags", "split", "counts", "report", "value", "tags", "details"}
)


class Text(bytes):
    """The bytes of a text, which need not be UTF-8."""


class Pages:
    """The pages of a database as of its last commit; a context manager.

    Args:
        path: the file. A log beside it is read as SQLite would: up to the last frame that is whole.
    """

    def __init__(self, path: Path) -> None:
        self._open = ExitStack()
        self._content: bytes | mmap.mmap = b""
        if path.stat().st_size:
            file = self._open.enter_context(path.open("rb"))
            self._content = self._open.enter_context(
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            )
        header = self._content[:_HEADER]
        log = path.with_name(f"{path.name}-wal")
        self.size_bytes = _page_bytes(header)
        self._logged = _logged(log.read_bytes()) if log.is_file() else {}
        if self._logged:
            self.size_bytes = len(next(iter(self._logged.values())))
        header = self.page(1)[:_HEADER]
        self.is_headed = header.startswith(_MAGIC)
        self.usable_bytes = self.size_bytes - (header[20] if self.is_headed else 0)
        self.version = int.from_bytes(header[60:64], "big") if self.is_headed else None
        self.count = max(-(-len(self._content) // self.size_bytes), *self._logged, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def page(self, number: int) -> bytes:
        """Return a page; what is missing of the file counts as zeros."""
        if number in self._logged:
            return self._logged[number]
        start = (number - 1) * self.size_bytes
        return self._content[start : start + self.size_bytes].ljust(self.size_bytes, b"\0")

    def free(self) -> set[int]:
        """Return the numbers of the pages that hold nothing any more."""
        found: set[int] = set()
        trunk = int.from_bytes(self.page(1)[32:36], "big") if self.is_headed else 0
        while 1 < trunk <= self.count and trunk not in found:
            found.add(trunk)
            page = self.page(trunk)
            trunk, number = struct.unpack(">II", page[:8])
            number = min(number, self.size_bytes // 4 - 2)
            found.update(struct.unpack(f">{number}I", page[8 : 8 + 4 * number]))
        return found

    def rows(self) -> Iterator[tuple[int, list[Value]]]:
        """Yield what looks like a row of some table: its number and its values.

        Those of the log come first: a page of the file that was written to another's place may
        hold rows as they were before.
        """
        free = self.free()
        for number in sorted(range(1, self.count + 1), key=lambda each: each not in self._logged):
            page = self.page(number) if number not in free else b"\0" * 8
            start = _HEADER if number == 1 else 0
            if page[start] != _TABLE_LEAF:
                continue
            cells = int.from_bytes(page[start + 3 : start + 5], "big")
            for cell in range(min(cells, self.size_bytes // 4)):
                at = start + 8 + 2 * cell
                try:
                    yield self._cell(page, int.from_bytes(page[at : at + 2], "big"))
                except (IndexError, ValueError, struct.error):
                    continue  # its bytes are no row

    def _cell(self, page: bytes, at: int) -> tuple[int, list[Value]]:
        length, at = _varint(page, at)
        number, at = _varint(page, at)
        if length > _LARGEST_BYTES:
            raise ValueError("no row is so long")
        return _signed(number), _values(self._payload(page, at, length))

    def _payload(self, page: bytes, at: int, length: int) -> bytes:
        most = self.usable_bytes - 35
        if length <= most:
            return page[at : at + length]
        least = (self.usable_bytes - 12) * 32 // 255 - 23
        here = least + (length - least) % (self.usable_bytes - 4)
        here = here if here <= most else least
        parts = [page[at : at + here]]
        following = int.from_bytes(page[at + here : at + here + 4], "big")
        left = length - here
        while left > 0:
            if not 1 < following <= self.count:
                raise ValueError("its next part is nowhere")
            further = self.page(following)
            parts.append(further[4 : 4 + min(left, self.usable_bytes - 4)])
            left -= len(parts[-1])
            following = int.from_bytes(further[:4], "big")
        return b"".join(parts)


_ADDED: Final = {"captions": 2, "failures": 2, "runs": 2, "videos": 2}
"""Columns that tables got until they had checksums; the others got one, their checksum."""
Rows: TypeAlias = "dict[tuple[object, ...], dict[str, Any]]"
"""Rows by their keys."""


def salvage(
    path: Path, tables: Sequence[Checksums], *, with_checksums_since: int
) -> dict[str, Rows]:
    """Return the whole rows of a catalog by table, whatever else is wrong with its file.

    Args:
        path: the file, which is only read.
        tables: to look for, with the columns of the newest version.
        with_checksums_since: the version from which on rows bear checksums; those of an older
            catalog are taken where their values are of the right kinds.

    Raises:
        OSError: the disk cannot be read.
    """
    found: dict[str, Rows] = {each.table.name: {} for each in tables}
    with Pages(path) as pages:
        is_old = pages.version is not None and pages.version < with_checksums_since
        for number, values in pages.rows():
            for checksums in tables:
                if is_old and checksums.table.since > 1:
                    continue
                row = _row_of(checksums, number, values, is_old=is_old)
                if row is None:
                    continue  # of another table, or damaged
                key = tuple(row[name] for name in checksums.table.key)
                found[checksums.table.name].setdefault(key, _decoded(row))
                break
    return found


def _row_of(
    checksums: Checksums, number: int, values: list[Value], *, is_old: bool
) -> dict[str, Any] | None:
    """Return a row by column if it is a whole one of this table, else None.

    A row of an earlier version lacks the columns that were added since.
    """
    stored = checksums.stored
    at = [column.name for column in stored].index("checksum")
    if is_old:
        fewest, most = at + 1 - _ADDED.get(checksums.table.name, 1), at
    else:
        fewest, most = at + 1, len(stored)
    if not fewest <= len(values) <= most:
        return None
    row = {column.name: _cell(column, value) for column, value in zip(stored, values, strict=False)}
    if checksums.table.number:
        row[checksums.table.number] = number
    if is_old:
        row = {column.name: row.get(column.name) for column in checksums.columns}
        return row if _is_plausible(checksums, row) else None
    of_then = Checksums(checksums.table, stored[: len(values)])
    if not _is_whole(of_then, row, row.pop("checksum")):
        return None
    return {**dict.fromkeys(column.name for column in checksums.columns), **row}


def _cell(column: Column, value: Value) -> Value:
    """Return a value as it was written: SQLite stores 2.0 as 2."""
    return float(value) if column.kind == "REAL" and isinstance(value, int) else value


def _is_whole(checksums: Checksums, row: Mapping[str, Any], checksum: object) -> bool:
    cells = [
        value if isinstance(value, float | None) else _as_bytes(value)
        for value in (row[column.name] for column in checksums.ordered)
    ]
    return checksums.fits(checksum, cells)


def _as_bytes(value: int | bytes) -> bytes:
    return str(value).encode() if isinstance(value, int) else bytes(value)


_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "TEXT": (Text,),
    "INTEGER": (int,),
    "REAL": (float,),
}


def _is_plausible(checksums: Checksums, row: Mapping[str, Any]) -> bool:
    """Say whether the values of a row without a checksum are what its columns may hold."""
    for column in checksums.columns:
        value = row[column.name]
        if value is None and not column.is_plain:
            continue
        if not isinstance(value, _KINDS[column.kind]):
            return False
        try:
            text = value.decode() if isinstance(value, bytes) else ""
            if column.name in _JSON:
                json.loads(text)
        except ValueError:
            return False
    return checksums.table.name != "captions" or key_fits(row["caption_key"], row["settings"])


def _decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.decode(errors="replace") if isinstance(value, Text) else value
        for name, value in row.items()
    }


def _values(record: bytes) -> list[Value]:
    """Return the values of a record, see "Record Format" in SQLite's description."""
    length, at = _varint(record, 0)
    kinds = []
    while at < length:
        kind, at = _varint(record, at)
        kinds.append(kind)
    values: list[Value] = []
    for kind in kinds:
        value, size = _value(record, at, kind)
        values.append(value)
        at += size
    if at != len(record):
        raise ValueError("its lengths do not add up")
    return values


_INTEGER_BYTES: Final = (0, 1, 2, 3, 4, 6, 8)


def _value(record: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == 0:
        return None, 0
    if kind < 7:
        size = _INTEGER_BYTES[kind]
        return int.from_bytes(record[at : at + size], "big", signed=True), size
    if kind == 7:
        return struct.unpack(">d", record[at : at + 8])[0], 8
    if kind < 10:
        return kind - 8, 0
    if kind < 12:
        raise ValueError("no value is of this kind")
    size = (kind - 12) // 2
    part = record[at : at + size]
    return (Text(part) if kind % 2 else part), size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(9):
        byte = data[at + place]
        if place == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    raise AssertionError


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _page_bytes(header: bytes) -> int:
    if header.startswith(_MAGIC):
        size = int.from_bytes(header[16:18], "big")
        size = 65536 if size == 1 else size
        if size >= 512 and size & (size - 1) == 0:
            return size
    return _USUAL_PAGE_BYTES


def _logged(log: bytes) -> dict[int, bytes]:
    """Return the pages of a log by number, as of the last commit whose frames are all whole."""
    if len(log) < _WAL_HEADER:
        return {}
    magic, _, size, _, *salts = struct.unpack(">6I", log[:24])
    if magic not in (0x377F0682, 0x377F0683) or size < 512 or size & (size - 1):
        return {}
    order = ">" if magic & 1 else "<"
    sums = _sums(log[:24], (0, 0), order)
    committed: dict[int, bytes] = {}
    pending: dict[int, bytes] = {}
    if sums != struct.unpack(">2I", log[24:32]):
        return {}
    for at in range(_WAL_HEADER, len(log) - _FRAME_HEADER - size + 1, _FRAME_HEADER + size):
        number, commit, *rest = struct.unpack(">6I", log[at : at + _FRAME_HEADER])
        content = log[at + _FRAME_HEADER : at + _FRAME_HEADER + size]
        sums = _sums(content, _sums(log[at : at + 8], sums, order), order)
        if rest[:2] != salts or tuple(rest[2:]) != sums:
            break
        pending[number] = content
        if commit:
            committed |= pending
            pending.clear()
    return committed


def _sums(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """Return the checksums of the log, see "Checksum Algorithm" in SQLite's description."""
    one, two = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = one + first + two & 0xFFFFFFFF
        two = two + second + one & 0xFFFFFFFF
    return one, two
