from __future__ import annotations

import csv
import json
import re
from html import unescape
from pathlib import Path

import av
import pytest
import webvtt
from click.testing import CliRunner

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.errors import ConfigError
from cogcache.export.exporting import FORMATS, Options, export, export_beside, format_of
from cogcache.export.items import COLUMNS, OF_VIDEO
from cogcache.export.rows import json_line
from cogcache.export.target import MARK
from cogcache.export.wording import Wording, one_line
from tests.support.exported import CUT, HOSTILE, PLAIN, add_caption, make_cache, tree

ALL = Selection()


@pytest.fixture
def cache(tmp_path):
    return make_cache(tmp_path)


@pytest.fixture
def write(cache, tmp_path):
    """Return a function that exports and returns what it was exported to."""

    def write(name: str, format_: str | None = None, selection=ALL, **options: object) -> Path:
        out = tmp_path / "out" / name
        kind = format_of(out, format_)
        export(cache / "catalog.sqlite", out, kind, selection, Options(**options))
        return out

    return write


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def contents(path: Path) -> dict[str, bytes] | bytes:
    return tree(path) if path.is_dir() else path.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_export_twice_is_the_same_bytes_and_leaves_nothing_else(write, name):
    once = contents(out := write("same", name))
    assert contents(write("same", name, overwrite=True)) == once
    assert [path.name for path in out.parent.iterdir()] == ["same"]


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_there_is_not_replaced_unasked(write, name):
    out = write("same", name)
    before = contents(out)
    with pytest.raises(ConfigError, match="exists already"):
        write("same", name)
    assert contents(out) == before


def test_a_folder_that_no_export_made_is_never_replaced(write, tmp_path):
    (tmp_path / "out" / "mine").mkdir(parents=True)
    (tmp_path / "out" / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="not made by an export"):
        write("mine", "musubi", overwrite=True)
    assert (tmp_path / "out" / "mine" / "thesis.txt").read_text() == "years"


def test_a_link_to_a_folder_is_never_replaced(write):
    out = write("same", "musubi")
    out.with_name("link").symlink_to(out)
    with pytest.raises(ConfigError, match="not made by an export"):
        write("link", "musubi", overwrite=True)


def test_an_export_that_fails_leaves_the_earlier_one_and_no_litter(write, monkeypatch):
    out = write("same", "cogvideox")
    before = tree(out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(Exception, match="No space left"):
        write("same", "cogvideox", overwrite=True)
    assert tree(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["same"]


def test_jsonl_rows_have_the_names_of_the_catalog_and_the_captions_as_they_are(write):
    text = write("a.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["caption"] for row in rows] == [PLAIN, HOSTILE, CUT]
    assert all(tuple(row) == (*COLUMNS, *OF_VIDEO) for row in rows)
    assert text.endswith("}\n")


def test_csv_gives_every_caption_back(write):
    with write("a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows] == [PLAIN, HOSTILE, CUT]
    assert [row["end_s"] for row in rows] == ["", "", "1.5"]


def test_parquet_gives_every_row_back(write):
    from pyarrow import parquet

    jsonl = [json.loads(line) for line in write("a.jsonl").read_text().splitlines()]
    assert parquet.read_table(write("a.parquet")).to_pylist() == jsonl


def test_datasets_loads_rows_from_all_three(write, tmp_path, monkeypatch):
    import datasets

    for kind, name in (("json", "a.jsonl"), ("csv", "a.csv"), ("parquet", "a.parquet")):
        rows = datasets.load_dataset(
            kind, data_files=str(write(name)), split="train", cache_dir=str(tmp_path / "hf")
        )
        assert rows["caption"] == [PLAIN, HOSTILE, CUT]


def test_vtt_is_read_by_two_readers_as_it_was_said(write):
    out = write("subs", "vtt")
    assert sorted(tree(out)) == [MARK, "b.vtt", "val.1.vtt"]
    cues = webvtt.read(str(out / "val.1.vtt"))
    assert [unescape(cue.text) for cue in cues] == [one_line(HOSTILE), CUT]
    assert (cues[1].start, cues[1].end) == ("00:00:00.500", "00:00:01.500")
    assert cues[0].start < cues[0].end
    assert "rolls <b>on</b> & on" in subtitles(out / "val.1.vtt")[0]


def test_srt_is_read_by_two_readers(write):
    out = write("subs", "srt")
    cues = webvtt.from_srt(str(out / "val.1.srt"))
    assert cues[1].text == CUT
    assert (cues[1].start, cues[1].end) == ("00:00:00.500", "00:00:01.500")
    first, second = subtitles(out / "val.1.srt")
    assert (CUT in second, "rolls \u2039b\u203aon\u2039/b\u203a & on" in first) == (True, True)


def subtitles(path: Path) -> list[str]:
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        return [s.ass.decode() for packet in container.demux(stream) for s in packet.decode()]


def test_one_video_makes_one_subtitle_file_and_more_are_refused(write, tmp_path):
    only = Selection(folders=(tmp_path / "films" / "test set" / "b.mkv",))
    assert PLAIN in write("b.srt", selection=only).read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="2 videos were chosen"):
        write("all.srt")


def test_texts_lie_beside_the_videos_and_are_not_replaced_unasked(cache, tmp_path):
    films = tmp_path / "films" / "test set"
    export_beside(cache / "catalog.sqlite", "txt", ALL, Options())
    assert (films / "b.txt").read_bytes() == f"{PLAIN}\n".encode()
    assert (films / "val.1.txt").read_text(encoding="utf-8").splitlines() == [
        one_line(HOSTILE),
        CUT,
    ]
    with pytest.raises(ConfigError, match="exists already"):
        export_beside(cache / "catalog.sqlite", "txt", ALL, Options())
    export_beside(cache / "catalog.sqlite", "txt", ALL, Options(overwrite=True))


@pytest.mark.parametrize("letter", "\r\n\t\v\f\x1c\x1d\x1e\x85\u2028\u2029")
def test_whatever_ends_a_line_ends_none(letter):
    assert one_line(f" a{letter}{letter}b {letter}") == "a b"
    assert len(json_line({"caption": f"a{letter}b"}).splitlines()) == 1
    assert json.loads(json_line({"caption": f"a{letter}b"})) == {"caption": f"a{letter}b"}


def test_prefix_suffix_and_trigger_stand_around_each_caption(write):
    wording = Wording(prefix="In short: ", suffix=" (end)", trigger="SKSFOX")
    rows = [json.loads(line) for line in lines_of(write("a.jsonl", wording=wording))]
    assert rows[2]["caption"] == f"SKSFOX In short: {CUT} (end)"


def test_empty_captions_are_left_out_and_counted(cache, tmp_path):
    with Catalog(cache / "catalog.sqlite") as catalog:
        video = Path(catalog.files.videos()[0]["path"])
        add_caption(catalog, video, 9.0, None, " \n", flags=["empty"])
    out = tmp_path / "a.jsonl"
    wording = Wording(prefix="A clip: ")
    done = export(cache / "catalog.sqlite", out, "jsonl", ALL, Options(wording))
    assert (done.captions, done.empty, len(out.read_text().splitlines())) == (3, 1, 3)


def test_filters_choose_as_in_search(write):
    assert (
        len(write("a.jsonl", selection=Selection(max_duration_s=1.0)).read_text().splitlines()) == 1
    )


def test_nothing_chosen_is_an_error_and_writes_nothing(write, tmp_path):
    with pytest.raises(ConfigError, match=r"no caption (passes|has)"):
        write("a.jsonl", selection=Selection(models=("none",)))
    assert not (tmp_path / "out").exists()


def test_a_name_without_a_known_suffix_needs_a_format(write):
    with pytest.raises(ConfigError, match="does not tell the format"):
        write("a.doc")


def test_the_command_writes_says_how_many_and_takes_filters(cache, tmp_path):
    out = tmp_path / "a.jsonl"
    arguments = ["export", str(out), "--cache", str(cache), "--max-duration", "1"]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stdout) == (0, "1 caption written\n")
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr


def test_the_command_needs_one_target(cache):
    assert CliRunner().invoke(main, ["export", "--cache", str(cache)]).exit_code == 2


def test_the_command_ends_with_1_when_a_video_could_not_be_had(cache, tmp_path):
    (tmp_path / "films" / "test set" / "b.mkv").unlink()
    arguments = ["export", str(tmp_path / "o"), "--format", "cogvideox", "--cache", str(cache)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert re.search(r"left out: .*b\.mkv: no file is there any more", done.stderr)


@pytest.mark.parametrize("text", ["a\n\n2\n00:00 --> 00:01\nb", "x {\\an8} \\N y", "1\n\n\n3"])
@pytest.mark.parametrize("kind", ["vtt", "srt"])
def test_no_caption_can_break_out_of_its_cue(write, cache, kind, text):
    with Catalog(cache / "catalog.sqlite") as catalog:
        video = Path(next(v["path"] for v in catalog.files.videos() if v["path"].endswith("mkv")))
        add_caption(catalog, video, 0.25, 0.25001, text)
    out = write("subs", kind)
    assert len(subtitles(out / f"b.{kind}")) == 2
