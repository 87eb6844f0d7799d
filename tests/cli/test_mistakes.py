"""What a newcomer types wrong, and the message that each mistake must give."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result
from scenes import settings, write_scene

from cogcache.catalog import Catalog
from cogcache.cli import main
from cogcache.errors import ConfigError
from cogcache.settings import load_settings
from cogcache.stages import caption, extract
from cogcache.system import check_devices


def here(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a captioned cache of one video, and things that are easily mistaken."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_scene(folder / "a.mp4", 0, num_frames=10)
    (folder / "list.txt").write_text("a.mp4\n")
    (folder / "notes.vtt").write_text("WEBVTT\n")
    (folder / "sample.toml").write_text("[sample]\nmax_frames = 3\n")
    (folder / "typo.toml").write_text("[sampling]\nmax_frame = 3\n")
    asked = settings(model="tiny", quantization="none", max_new_tokens=2, retry=False)
    extract([folder / "a.mp4"], folder / "cache", asked)
    caption(folder / "cache", asked)
    extract([folder / "a.mp4"], folder / "empty", asked)
    return folder


MISTAKES = [
    ("plan --model tiny --memory 4", "write --memory 4GiB"),
    ("plan --model tiny --memory much", "a size such as 8GiB"),
    ("plan --model tinny", "did you mean tiny?"),
    ("plan --model ./nowhere/model", "there is no folder ./nowhere/model"),
    ("plan --model cogvlm", "a hub id is OWNER/NAME"),
    ("plan --model list.txt", "give the folder that it lies in"),
    ("plan --model tiny --config cogvlm2", "did you mean cogvlm2-caption?"),
    ("plan --model tiny --config sample.toml", "did you mean the table [sampling]?"),
    ("plan --model tiny --config typo.toml", "did you mean max_frames"),
    ("plan --model tiny --size 720p", "write it like 1280x720"),
    ("plan --model tiny --strategy uniform --fps 2", "no effect with the strategy uniform"),
    ("plan --model tiny --min-pixels 9 --max-pixels 3", "is more than max_pixels"),
    ("extract list.txt --cache new --model tiny", "did you mean @list.txt"),
    ("extract nothing.mp4 --cache new --model tiny", "no such file or folder"),
    ("extract a.mp4 --cache new --model tiny --max-pixels 5000", "takes frames of one size"),
    ("extract a.mp4 --cache new --model tiny --clip 5", "is not START:END"),
    ("caption --cache nowhere --model tiny", "there is no cache in nowhere"),
    ("caption --cache cache --model tiny --system be-brief", "without system prompts"),
    (
        'caption --cache cache --model tiny --prompt [{"role":"user","content":"What?"}]',
        "takes one question, not a list of messages",
    ),
    ("caption --cache cache --model tiny --prompt a={caption.colour}", "there are default"),
    ("caption --cache cache --model tiny --prompt a={nam}", "did you mean {name}?"),
    ("caption --cache cache --model tiny --max-frames 3", "sampling.max_frames is 24"),
    ("export out.jsonl --cache cache --prompt-name nosuch", "there are default"),
    ("export out.jsonl --cache cache --model nosuch", "there are tiny"),
    ("export out --cache cache --format lora", "there is no format 'lora'"),
    ("export out --cache cache --format jsnl", "did you mean jsonl?"),
    ("export out --cache cache", "does not tell the format"),
    ("export - --cache cache", "--format jsonl"),
    ("export out.jsonl --cache empty", "no caption passes"),
    ("ls --cache cach", "did you mean cache?"),
    ("ls --cache cache --columns video,captoin", "did you mean caption?"),
    ("plan --model tiny --clips many", "'many' is not a valid whole number"),
    ("plan --model tiny --clips 0", "0 is not in the range 1 or more"),
    ("search --cache cache --since yesterday red", "write it as YYYY-MM-DD"),
    ("ls --cache cache --columns nosuch", "there is no column 'nosuch'"),
    ("ls clips --cache cache --prompt-name default", "chooses among captions"),
    ("help extrat", "did you mean extract?"),
    ("configs qwen", "did you mean qwen2-vl, qwen2.5-vl, qwen3-vl?"),
    ("ls", "caches here: cache,"),
    ("export out.jsn --cache cache", "did you mean out.jsonl?"),
    ("replace blue --cache cache", "to take the words out, write ''"),
    ("import notes.vtt --cache cache --set mine", "is none of JSONL, CSV, or a folder of .txt"),
    ("configs tinny", "did you mean tiny?"),
]


NOTHING_CHOSEN = {typed for typed, _ in MISTAKES if typed.startswith("export out.jsonl")}
"""What was asked for is not there: exit status 1, where all else is misuse."""


def status_of(typed: str) -> int:
    return 1 if typed in NOTHING_CHOSEN else 2


@pytest.mark.parametrize(("typed", "told"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_each_mistake_is_told_with_what_to_do(made, monkeypatch, typed, told):
    monkeypatch.chdir(made)
    result = here(*typed.split())
    assert result.exit_code == status_of(typed), result.output
    assert told in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_there_are_thirty_of_them():
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("4G", "4GiB"), ("12gb", "12GB"), ("8 gib", "8GiB"), ("512M", "512MiB"), ("auto", "auto")],
)
def test_sizes_are_taken_as_they_are_meant(typed, meant):
    assert load_settings(None, {"memory": typed}).memory == meant


def test_a_device_that_is_not_there_is_refused_before_workers_start():
    with pytest.raises(ConfigError, match="there is no cuda device here"):
        check_devices(["cpu", "cuda:7"])


def test_an_empty_cache_at_caption_says_what_makes_clips_and_ends_with_1(made, monkeypatch):
    monkeypatch.chdir(made)
    with Catalog(made / "empty" / "catalog.sqlite") as catalog:
        catalog.clips.remove([row["feature_key"] for row in catalog.clips.rows()])
    result = here("caption", "--cache=empty", "--model=tiny")
    assert result.exit_code == 1
    assert "`cogcache extract` makes them" in result.output


def test_an_export_to_standard_output_is_the_file(made, monkeypatch):
    monkeypatch.chdir(made)
    shown = here("export", "-", "--format=jsonl", "--cache=cache")
    assert shown.exit_code == 0
    row = json.loads(shown.stdout)
    assert (row["width"], row["height"], row["fps"]) == (112, 112, 8.0)
    assert len(row["video_digest"]) == 64
    assert row["duration_s"] > 0
    assert here("export", "out.jsonl", "--cache=cache").exit_code == 0
    assert (made / "out.jsonl").read_text() == shown.stdout


def test_what_was_written_and_taken_is_told_as_one_object(made, monkeypatch):
    monkeypatch.chdir(made)
    told = here("export", "told.jsonl", "--cache=cache", "--json")
    assert json.loads(told.stdout)["captions"] == 1
    taken = here("import", "told.jsonl", "--cache=cache", "--set=mine", "--json")
    expected = {"set": "mine", "written": 1, "same": 0, "reviews": 0, "unmatched": []}
    assert json.loads(taken.stdout) == expected


def test_captions_are_listed_by_the_filters_of_search_few_columns_and_few_rows(made, monkeypatch):
    monkeypatch.chdir(made)

    def listed(*asked: str) -> list[dict]:
        return json.loads(here("ls", "--cache=cache", "--json", *asked).stdout)

    assert {*listed("--columns=video,model")[0]} == {"video", "model"}
    assert len(listed("--model=tiny")) == 1
    assert listed("--model=another") == []
    assert listed("--prompt-name=default", "--until=2001-01-01") == []
    assert len(listed("--limit=1")) == 1
    assert "model" in here("ls", "--cache=cache").output.splitlines()[0]


@pytest.mark.parametrize("typed", ["ls", "search a"])
def test_a_name_that_no_caption_has_is_told_with_those_there_are(made, monkeypatch, typed):
    monkeypatch.chdir(made)
    found = here(*typed.split(), "--cache=cache", "--prompt-name=nosuch")
    assert found.exit_code == 0
    assert "no caption has --prompt-name nosuch; there are default" in found.stderr
    found = CliRunner().invoke(main, ["ls", "--cache", "cache", "--cut", "segmnt:24"])
    assert "no caption has --cut segmnt:24; there are whole" in found.stderr
    assert "nothing to list" in found.stdout


def test_thousands_may_be_typed_as_they_are_printed(made, monkeypatch):
    monkeypatch.chdir(made)
    assert here("ls", "--cache=cache", "--limit=10,000").exit_code == 0
    assert here("ls", "--cache=cache", "--limit=1,00").exit_code == 2
