"""One row for each caption: JSONL, CSV and Parquet. Line breaks in captions are kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cogcache.errors import ConfigError
from cogcache.export.items import COLUMNS, OF_VIDEO, Item
from cogcache.system import extra_hint

# JSON allows these raw, but who reads by splitlines() would find more lines than there are.
_ESCAPED: Final = {ord(letter): f"\\u{ord(letter):04x}" for letter in "\x7f\x85\u2028\u2029"}


def json_line(row: Mapping[str, Any]) -> str:
    """Return a row as one physical line of JSON."""
    return json.dumps(dict(row), ensure_ascii=False).translate(_ESCAPED) + "\n"


def write_jsonl(items: Sequence[Item], path: Path) -> None:
    """Write a JSON object a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json_line({**item.row, **item.carried}) for item in items)


def write_csv(items: Sequence[Item], path: Path) -> None:
    """Write a table with a heading; flags are joined by blanks, no value is an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*COLUMNS, *OF_VIDEO])
        for item in items:
            row = {**item.row, "flags": " ".join(item.row["flags"])}
            table.writerow([row[name] for name in (*COLUMNS, *OF_VIDEO)])


def write_parquet(items: Sequence[Item], path: Path) -> None:
    """Write a Parquet file; needs pyarrow.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        problem = "Parquet needs pyarrow, which is not installed"
        raise ConfigError(problem, extra_hint("parquet")) from error
    kinds = {"start_s": pa.float64(), "end_s": pa.float64(), "seconds": pa.float64()}
    kinds |= dict.fromkeys(("duration_s", "fps", "offset_s"), pa.float64())
    kinds |= dict.fromkeys(("width", "height"), pa.int64())
    kinds |= {"num_tokens": pa.int64(), "flags": pa.list_(pa.string())}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in (*COLUMNS, *OF_VIDEO)])
    table = pa.Table.from_pylist([dict(item.row) for item in items], schema=schema)
    parquet.write_table(table, path, compression="zstd")


ROWS: Final[dict[str, Callable[[Sequence[Item], Path], None]]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
}
