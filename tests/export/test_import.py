from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.full_text import CaptionSearch
from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.errors import ConfigError
from cogcache.export.exporting import Options, export
from cogcache.export.importing import import_captions
from tests.support.exported import CUT, make_cache


@pytest.fixture
def catalog(tmp_path):
    return make_cache(tmp_path) / "catalog.sqlite"


@pytest.fixture
def edited(catalog, tmp_path):
    """Return a function that exports the captions, changes each row, and returns the file."""

    def edit(change) -> object:
        path = tmp_path / "edited.jsonl"
        tiny = Selection(models=("tiny",))
        export(catalog, path, "jsonl", tiny, Options(overwrite=True))
        rows = [change(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None))
        return path

    return edit


def louder(row):
    return row | {"caption": row["caption"].upper()}


def captions(catalog, model):
    with Catalog(catalog) as opened:
        return [row["caption"] for row in opened.captions.rows(model=model)]


def test_edited_captions_are_a_set_beside_those_there_were(catalog, edited):
    before = captions(catalog, "tiny")
    assert import_captions(edited(louder), catalog, "edited").written == 3
    assert captions(catalog, "edited") == [text.upper() for text in before]
    assert captions(catalog, "tiny") == before


def test_a_set_is_searched_and_exported_by_its_name(catalog, edited, tmp_path):
    import_captions(edited(louder), catalog, "edited")
    with CaptionSearch(catalog) as index:
        found = index.search("turns left", Selection(models=("edited",))).hits
    assert [hit.caption["caption"] for hit in found] == [CUT.upper()]
    out = tmp_path / "again.jsonl"
    assert export(catalog, out, "jsonl", Selection(models=("edited",)), Options()).captions == 3


def test_importing_again_changes_nothing(catalog, edited):
    file = edited(louder)
    import_captions(file, catalog, "edited")
    again = import_captions(file, catalog, "edited")
    assert (again.written, again.same) == (0, 3)


def test_other_words_replace_only_when_asked(catalog, edited):
    import_captions(edited(louder), catalog, "edited")
    other = edited(lambda row: row | {"caption": "Changed."})
    with pytest.raises(ConfigError, match="other captions already for 3 clips"):
        import_captions(other, catalog, "edited")
    assert import_captions(other, catalog, "edited", overwrite=True).written == 3
    assert captions(catalog, "edited") == ["Changed."] * 3


def test_video_and_times_name_a_clip_as_well_as_its_key(catalog, edited):
    names = ("video", "start_s", "end_s", "caption")
    file = edited(lambda row: {name: row[name] for name in names})
    assert import_captions(file, catalog, "edited").written == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"feature_key": "0", "video": "/none.mp4"}, "no such clip"),
        (lambda row: row | {"caption": " "}, "no caption"),
        (lambda row: row | {"caption": None}, "no caption"),
        (lambda row: row | {"start_s": "0"}, "start_s is no number"),
        (lambda row: row | {"prompt_name": 3}, "prompt_name is no text"),
        (lambda row: row | {"start_s": 10**400}, "start_s is no time"),
        (lambda row: row | {"end_s": 10**400}, "end_s is no time"),
        (lambda row: row | {"start_s": float("nan")}, "start_s is no time"),
        (lambda row: row | {"end_s": float("inf")}, "end_s is no time"),
        (lambda row: row | {"start_s": -1}, "start_s is no time"),
        (lambda row: row | {"caption": "x" * 2**16}, "more than 32768 letters"),
        (lambda row: [row], "no JSON object"),
    ],
)
def test_one_bad_line_imports_nothing_and_is_named(catalog, edited, change, message):
    file = edited(lambda row: change(row) if row["caption"] == CUT else row)
    with pytest.raises(ConfigError, match=message) as caught:
        import_captions(file, catalog, "edited")
    assert "line 3" in str(caught.value)
    assert captions(catalog, "edited") == []


DEEP = b"[" * 200_000 + b"]" * 200_000


@pytest.mark.parametrize(
    "content",
    [
        b"{nonsense}\n",
        b"\xff\xfe\n",
        DEEP,
        b'{"caption": "a", "more": ' + DEEP + b"}",
        b'{"caption": "a", "start_s": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_jsonl_is_refused(catalog, tmp_path, content):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=r"line 1|UTF-8"):
        import_captions(tmp_path / "bad.jsonl", catalog, "edited")


def test_two_captions_of_one_clip_and_prompt_are_refused(catalog, edited):
    file = edited(louder)
    file.write_text(file.read_text() * 2)
    with pytest.raises(ConfigError, match="second caption"):
        import_captions(file, catalog, "edited")


@pytest.mark.parametrize("name", ["tiny", " ", "a\nb"])
def test_a_set_takes_no_models_name_and_no_odd_one(catalog, edited, name):
    with pytest.raises(ConfigError):
        import_captions(edited(louder), catalog, name)


def test_the_command_imports(catalog, edited):
    arguments = ["import", str(edited(louder)), "--cache", str(catalog.parent), "--set", "edited"]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stdout[:19]) == (0, "3 captions imported")


def test_a_table_that_export_wrote_is_taken_back(catalog, tmp_path):
    table = tmp_path / "out.csv"
    export(catalog, table, "csv", Selection(models=("tiny",)), Options())
    assert import_captions(table, catalog, "table").written == 3
    assert captions(catalog, "table") == captions(catalog, "tiny")


def test_a_folder_of_texts_is_taken_by_the_names_of_the_videos(catalog, tmp_path):
    films = tmp_path / "films" / "test set"
    (films / "b.txt").write_text("一个蓝色的圆圈 again.\n")
    (films / "val.1.txt").write_text("A text\nof two lines.")
    assert import_captions(films, catalog, "beside").written == 2
    elsewhere = tmp_path / "texts" / "test set"
    elsewhere.mkdir(parents=True)
    (elsewhere / "b.txt").write_text("By its name.")
    assert import_captions(tmp_path / "texts", catalog, "named").written == 1
    assert captions(catalog, "named") == ["By its name."]


def test_a_text_beside_a_video_that_is_not_in_the_cache_is_of_that_video(catalog, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.mkv").write_bytes(b"another video of the same name")
    (other / "b.txt").write_text("Of another video.")
    with pytest.raises(ConfigError, match="no such clip"):
        import_captions(other, catalog, "wrong")


@pytest.mark.parametrize("named", ["relative", "digest", "ending"])
def test_lines_name_videos_by_digest_or_by_names_relative_to_the_file(catalog, tmp_path, named):
    films = tmp_path / "films"
    digest = next(row["video_digest"] for row in clips(catalog) if row["video"].endswith("b.mkv"))
    row = {
        "relative": {"media_path": "test set/b.mkv"},
        "digest": {"video_digest": digest},
        "ending": {"file_name": "test set/b.mkv"},
    }[named]
    folder = films if named == "relative" else tmp_path
    (folder / "lines.jsonl").write_text(json.dumps(row | {"text": "Found."}))
    assert import_captions(folder / "lines.jsonl", catalog, "lines").written == 1
    assert captions(catalog, "lines") == ["Found."]


def clips(catalog):
    with Catalog(catalog) as opened:
        return opened.clips.rows()


def test_lines_that_fit_no_clip_are_listed_and_the_others_taken_where_that_is_asked(
    catalog, edited, tmp_path
):
    file = edited(louder)
    lines = file.read_text().splitlines()
    lines += [json.dumps({"video": name, "caption": "x"}) for name in ("/no/1.mp4", "no/2.mp4")]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"line 4: .*and 1 more: .*line 5"):
        import_captions(file, catalog, "some")
    assert captions(catalog, "some") == []
    words = ["import", str(file), "--set", "some", "--cache", str(catalog.parent)]
    done = CliRunner().invoke(main, [*words, "--skip-unmatched"])
    assert done.exit_code == 1
    assert done.output.count("the cache has no such clip") == 2
    assert len(captions(catalog, "some")) == 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a,b\n1,2\n", "no column `caption`"),
        ("video,caption\nx\n", "not as many cells"),
        ("video,caption,start_s\nx,y,soon\n", "could not convert"),
        ("video,caption\nx,\n", "has no caption"),
    ],
)
def test_a_table_that_cannot_be_read_says_where(catalog, tmp_path, text, fault):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConfigError, match=fault):
        import_captions(tmp_path / "t.csv", catalog, "t")


@pytest.mark.parametrize("name", ["a" * 300 + ".mp4", "a" * 100_000, "b/" * 3000])
def test_a_name_that_no_file_system_takes_is_that_of_no_clip(catalog, tmp_path, name):
    file = tmp_path / "named.jsonl"
    file.write_text(json.dumps({"caption": "a", "video": name}))
    with pytest.raises(ConfigError, match="no such clip"):
        import_captions(file, catalog, "edited")


@pytest.mark.parametrize("make", ["link", "pipe"])
def test_a_text_that_lies_elsewhere_or_is_no_file_is_not_read(catalog, tmp_path, make):
    (tmp_path / "secret").write_text("mine")
    folder = tmp_path / "texts"
    folder.mkdir()
    text = folder / "clip.txt"
    text.symlink_to(tmp_path / "secret") if make == "link" else os.mkfifo(text)
    with pytest.raises(ConfigError, match=r"clip\.txt is no file of"):
        import_captions(folder, catalog, "edited")
