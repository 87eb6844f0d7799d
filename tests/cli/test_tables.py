from __future__ import annotations

import json

from cogcache.cli.tables import as_json, as_table, side_by_side

ROWS = [{"video": "a.mp4", "start_s": 0.0, "flags": ["empty"]}, {"video": "b\x1b[2J.mp4"}]


def test_json_is_one_array_of_whole_rows():
    assert json.loads(as_json(ROWS)) == ROWS


def test_no_rows_are_an_empty_array():
    assert json.loads(as_json([])) == []


def test_a_table_has_the_columns_in_order():
    assert as_table(ROWS, ["video", "flags"]).split()[:2] == ["video", "flags"]


def test_control_characters_do_not_reach_the_terminal():
    assert "\x1b" not in as_table(ROWS, ["video"])


def test_a_table_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = as_table([{"a": "word " * 100, "b": "x"}], ["a", "b"]).splitlines()
    assert max(map(len, lines)) <= 60


def test_captions_of_a_clip_stand_side_by_side_the_newest_of_each_prompt():
    place = {"video": "a.mp4", "start_s": 0.0, "end_s": None, "offset_s": 0.0}
    said = [("short", "Old."), ("video", "Long."), ("short", "New.")]
    rows = [{**place, "prompt_name": name, "caption": text} for name, text in said]
    rows.append({**place, "start_s": 5.0, "prompt_name": "short", "caption": "Later."})
    assert side_by_side(rows) == [
        {**place, "captions": {"short": "New.", "video": "Long."}},
        {**place, "start_s": 5.0, "captions": {"short": "Later."}},
    ]


def test_texts_that_look_like_values_stay_texts():
    cells = as_table([{"a": False, "b": "False"}, {"a": "1,000", "b": "1e5"}], ["a", "b"])
    assert [line.split() for line in cells.splitlines()[2:]] == [["False"] * 2, ["1,000", "1e5"]]


LONG_NAME = "a-name-without-any-slash-that-is-as-long-as-a-terminal-is-wide-and-then-some-more.mp4"
NARROW = [
    {"video": "/films/of/the/summer/of/1999/holiday.mp4", "prompt_name": "the-name-of-a-prompt",
     "caption": "Two dogs run over a meadow and jump into a lake.", "model": "owner/a-long-model",
     "started_at": "2026-11-30T00:43:50+00:00", "measured_peak_bytes": 2**30, "tokens": 1080},
]  # fmt: skip


def test_a_table_of_many_columns_fits_80_and_breaks_no_name(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = as_table(NARROW, list(NARROW[0]))
    assert max(map(len, shown.splitlines())) <= 80
    for name in ("the-name-of-a-prompt", "holiday.mp4", "1,080", "1 GiB", "2026-11-30"):
        assert name in shown
    assert "+00:00" not in shown


def test_a_name_that_is_too_long_for_a_table_stays_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [{"video": LONG_NAME, "caption": "word " * 40, "flags": []}] * 2
    shown = as_table(rows, ["video", "caption", "flags"])
    assert shown.count(LONG_NAME) == 2
    assert all(len(line) <= 80 for line in shown.splitlines() if LONG_NAME not in line)
    assert "flags" not in shown  # what is empty takes no line


def test_titles_wrap_behind_an_underscore(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    lines = as_table([{"measured_peak_bytes": 1, "a": "x" * 16}], ["measured_peak_bytes", "a"])
    assert [line.split()[0] for line in lines.splitlines()[:2]] == ["measured_", "peak_bytes"]
