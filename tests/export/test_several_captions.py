"""Several captions of a clip go where a trainer reads them, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.selection import Selection
from cogcache.errors import ConfigError
from cogcache.export.exporting import Options, export
from cogcache.generation.flags import changes_for, flags_of, num_words
from cogcache.settings.machines import Limits
from cogcache.settings.settings import load_settings
from tests.support.exported import add_caption, make_cache

WHOLE = Selection(models=("tiny", "other"), max_duration_s=1e6)


@pytest.fixture
def catalog(tmp_path):
    cache = make_cache(tmp_path)
    with Catalog(cache / "catalog.sqlite") as opened:
        (video,) = {row["video"] for row in opened.clips.rows() if row["video"].endswith("mkv")}
        key = next(r["feature_key"] for r in opened.clips.rows() if r["video"] == video)
        add_caption(opened, Path(video), 0.0, None, "A second caption.", model="other")
        keys = [r["caption_key"] for r in opened.captions.rows(feature_keys=[key])]
        scores = [
            {"name": "grounding", "feature_key": "", "caption_key": key, "score": float(n),
             "model": "", "prompt": "", "epoch": 1, "details": {}}
            for n, key in enumerate(keys)
        ]  # fmt: skip
        opened.scores.add(scores)
    return cache / "catalog.sqlite"


def write(catalog, tmp_path, format_, how="all"):
    out = tmp_path / f"{format_}-{how}".replace(":", "-")
    done = export(catalog, out, format_, WHOLE, Options(captions_per_clip=how))
    return out, done


def test_several_are_refused_until_it_is_said_which(catalog, tmp_path):
    with pytest.raises(ConfigError, match="have several captions"):
        export(catalog, tmp_path / "out", "musubi", WHOLE, Options())


@pytest.mark.parametrize("format_", ["musubi", "finetrainers", "ai-toolkit"])
def test_trainers_of_one_caption_a_file_get_a_name_for_each(catalog, tmp_path, format_):
    out, done = write(catalog, tmp_path, format_)
    texts = sorted(out.rglob("*.txt"))
    assert done.captions == len(texts) == 4
    for text in texts:
        assert text.with_suffix(".mp4").is_file()
    by_content = {text.with_suffix(".mp4").stat().st_ino for text in texts}
    assert len(by_content) == 3  # the second name is a link: no disk is taken twice


def test_diffusion_pipe_gets_lists(catalog, tmp_path):
    out, _ = write(catalog, tmp_path, "diffusion-pipe")
    found = json.loads((out / "videos" / "captions.json").read_text())
    assert sorted(len(each) for each in found.values()) == [1, 1, 2]
    assert {*found} == {path.name for path in (out / "videos").glob("*.mp4")}
    assert not [*out.rglob("*.txt")]


def test_simpletuner_gets_a_line_each_and_is_told_to_split_them(catalog, tmp_path):
    out, _ = write(catalog, tmp_path, "simpletuner")
    assert sorted(len(p.read_text().splitlines()) for p in out.rglob("*.txt")) == [1, 1, 2]
    clips, _ = json.loads((out / "multidatabackend.json").read_text())
    assert clips["disable_multiline_split"] is False
    assert Path(clips["instance_data_dir"]).is_absolute()


def test_one_caption_a_clip_is_not_split_by_simpletuner(catalog, tmp_path):
    out, _ = write(catalog, tmp_path, "simpletuner", "random:1")
    clips, texts = json.loads((out / "multidatabackend.json").read_text())
    assert clips["disable_multiline_split"] is True
    assert texts["dataset_type"] == "text_embeds"


def test_ltx_gets_lines_with_paths_below_the_file(catalog, tmp_path):
    out, done = write(catalog, tmp_path, "ltx")
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == done.captions == 4
    assert len({row["media_path"] for row in rows}) == 4  # what is made of it is kept by its name
    assert all((out / row["media_path"]).is_file() and row["caption"] for row in rows)


def test_the_best_by_a_score_and_one_by_chance(catalog, tmp_path):
    out, done = write(catalog, tmp_path, "musubi", "best:grounding")
    assert done.captions == 3
    assert "A second caption.\n" in [path.read_text() for path in out.rglob("*.txt")]
    some = [
        write(catalog, tmp_path, "jsonl", f"random:{seed}")[0].read_text() for seed in "0123456"
    ]
    assert len({*some}) == 2
    with pytest.raises(ConfigError, match="means nothing"):
        write(catalog, tmp_path, "musubi", "some")
    with pytest.raises(ConfigError, match="has the score 'nothing'"):
        write(catalog, tmp_path, "musubi", "best:nothing")


def test_captions_of_unwanted_length_are_flagged_and_drawn_once_more():
    limits = Limits(max_words=3, min_words=2)
    tokens = [1, 2, 3]
    assert flags_of("one two three four", tokens, ended=True, limits=limits) == ("too_long",)
    assert flags_of("one", tokens, ended=True, limits=limits) == ("too_short",)
    assert flags_of("one two", tokens, ended=True, limits=limits) == ()
    assert num_words("一只狗 runs") == 4
    changes = changes_for(["too_long"], load_settings(None, {}).generation)
    assert changes["do_sample"]
