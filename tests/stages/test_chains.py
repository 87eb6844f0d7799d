"""Prompts that are made of captions, over real feature files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import zoo
from scenes import catalog_of, settings, write_scene

from cogcache.catalog.rows import CaptionRow
from cogcache.errors import ConfigError
from cogcache.export.importing import import_captions
from cogcache.generation.batches import generate
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.registry import family_of
from cogcache.settings.stage_two import Generation
from cogcache.stages.caption import caption
from cogcache.stages.captioning.fill_prompts import NO_FIRST_CAPTION
from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore
from cogcache.system import CachePaths

COLOR = "What color is the shape?"
SECOND = "Say it once more: {caption.color}"
NUM_CLIPS = 3
CHAIN = {"second": SECOND, "color": COLOR}
WORDS = {"text_only": ["second"]}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chains")
    for seed in range(NUM_CLIPS):
        write_scene(folder / f"{seed}.mp4", seed)
    extract([folder], folder / "cache", settings())
    return folder / "cache"


@pytest.fixture
def cache(extracted, tmp_path) -> Path:
    return Path(shutil.copytree(extracted, tmp_path / "cache"))


def asked(**changes: object):
    return settings(**{"quantization": "none", "max_new_tokens": 8, "prompts": CHAIN, **changes})


def captions(cache: Path, prompt_name: str) -> dict[str, CaptionRow]:
    """Return the newest caption of each clip with a prompt."""
    with catalog_of(cache) as catalog:
        return {row["video"]: row for row in catalog.captions.rows(prompt_name=prompt_name)}


def test_a_prompt_that_names_a_caption_is_asked_with_what_was_said(cache):
    report = caption(cache, asked())
    assert (report.counts.found, report.counts.done) == (2 * NUM_CLIPS, 2 * NUM_CLIPS)
    first, second = captions(cache, "color"), captions(cache, "second")
    assert len({row["caption"] for row in first.values()}) > 1
    for video, row in second.items():
        assert row["prompt"] == f"Say it once more: {first[video]['caption']}"
        assert row["settings"]["prompt"] == row["prompt"]


def test_a_second_run_makes_nothing_and_loads_nothing(cache):
    caption(cache, asked())
    report = caption(cache, asked())
    assert (report.counts.done, report.counts.cached) == (0, 2 * NUM_CLIPS)
    assert report.bytes_by_shard == {}


def test_a_chain_takes_captions_of_an_earlier_run_and_edited_ones_before_them(cache, tmp_path):
    caption(cache, asked(prompts={"color": COLOR}))
    first = captions(cache, "color")
    edited = min(first)
    row = {**first[edited], "caption": "Turquoise."}
    (tmp_path / "edited.jsonl").write_text(json.dumps(row))
    import_captions(tmp_path / "edited.jsonl", CachePaths(cache).catalog, "mine")
    report = caption(cache, asked(prompts={"second": SECOND}))
    assert report.counts.done == NUM_CLIPS
    asked_with = {video: row["prompt"] for video, row in captions(cache, "second").items()}
    said = {video: row["caption"] for video, row in first.items()} | {edited: "Turquoise."}
    assert asked_with == {video: f"Say it once more: {text}" for video, text in said.items()}


def test_chains_of_several_levels_are_made_in_one_run(cache):
    chain = {**CHAIN, "third": "{caption.second} {{and}} {caption.color}"}
    report = caption(cache, asked(prompts=chain))
    assert report.counts.done == 3 * NUM_CLIPS
    color, second = captions(cache, "color"), captions(cache, "second")
    for video, row in captions(cache, "third").items():
        said = f"{second[video]['caption']} {{and}} {color[video]['caption']}"
        assert row["prompt"] == said.strip()


def test_a_chain_is_asked_behind_one_prefill_of_a_clips_video_part(cache):
    chain = {**CHAIN, "third": "{caption.second} {{and}} {caption.color}"}
    report = caption(cache, asked(prompts=chain, clips_per_batch=2))
    assert report.counts.done == 3 * NUM_CLIPS
    [told] = [line for line in report.notes if "prefills" in line]
    assert told.startswith(f"decoding: {NUM_CLIPS} prefills of a video part")


def test_a_chain_behind_one_prefill_says_what_its_passes_say_one_after_the_other(cache, tmp_path):
    apart = Path(shutil.copytree(cache, tmp_path / "apart"))
    exact = {"compute_dtype": "float32", "clips_per_batch": 2}
    caption(cache, asked(**exact))
    for prompts in ({"color": COLOR}, CHAIN):
        caption(apart, asked(prompts=prompts, **exact))
    for name in CHAIN:
        assert {
            video: (row["caption"], row["caption_key"])
            for video, row in captions(cache, name).items()
        } == {
            video: (row["caption"], row["caption_key"])
            for video, row in captions(apart, name).items()
        }


def test_a_chain_goes_on_with_the_video_after_a_pass_without_it(cache):
    chain = {**CHAIN, "third": "Was it {caption.second}?"}
    assert caption(cache, asked(prompts=chain, **WORDS)).counts.done == 3 * NUM_CLIPS
    with catalog_of(cache) as catalog:
        assert catalog.failures.rows() == []


def test_only_a_first_caption_that_changes_makes_a_new_second(cache):
    caption(cache, asked())
    before = captions(cache, "color")
    same = asked(prompts={"color": f"{COLOR} ", "second": SECOND})
    assert caption(cache, same).counts.done == 0
    reworded = {"color": "What is the color of the shape?", "second": SECOND}
    report = caption(cache, asked(prompts=reworded))
    after = captions(cache, "color")
    changed = [video for video in after if after[video]["caption"] != before[video]["caption"]]
    assert report.counts.done == NUM_CLIPS + len(changed)
    other = {"color": "What shape is it?", "second": SECOND}
    assert caption(cache, asked(prompts=other)).counts.done == 2 * NUM_CLIPS


def test_a_limit_counts_over_all_levels_and_the_next_run_goes_on(cache):
    first = caption(cache, asked(limit=NUM_CLIPS + 1))
    assert (first.counts.done, first.stopped) == (NUM_CLIPS + 1, f"--limit {NUM_CLIPS + 1}")
    assert (len(captions(cache, "color")), len(captions(cache, "second"))) == (NUM_CLIPS, 1)
    second = caption(cache, asked())
    assert (second.counts.cached, second.counts.done) == (NUM_CLIPS + 1, NUM_CLIPS - 1)


def test_each_of_several_draws_has_a_second_caption_of_its_own(cache):
    drawn = {"do_sample": True, "temperature": 3.0, "n": 3, "retry": False}
    caption(cache, asked(**drawn))
    with catalog_of(cache) as catalog:
        rows = catalog.captions.rows()
    said = {
        (row["video"], row["settings"]["generation"]["draw"]): row["caption"]
        for row in rows
        if row["prompt_name"] == "color"
    }
    assert len({*said.values()}) > NUM_CLIPS
    for row in rows:
        if row["prompt_name"] == "second":
            own = said[row["video"], row["settings"]["generation"]["draw"]]
            assert row["prompt"] == f"Say it once more: {own}"


def test_an_empty_first_caption_gives_no_second_and_is_told(cache):
    # Whatever is said is cut away, the second try included.
    empty = asked(stop=[*"abcdefghijklmnopqrstuvwxyz"], max_new_tokens=2, prompts=CHAIN)
    upper = asked(stop=[*"ABCDEFGHIJKLMNOPQRSTUVWXYZ"], max_new_tokens=2, prompts=CHAIN)
    report = caption(cache, upper)
    assert {row["caption"] for row in captions(cache, "color").values()} == {""}
    assert (report.counts.done, report.counts.failed) == (NUM_CLIPS, NUM_CLIPS)
    assert report.exit_status == 1
    with catalog_of(cache) as catalog:
        failures = catalog.failures.rows()
    assert [row["reason"] for row in failures] == [NO_FIRST_CAPTION] * NUM_CLIPS
    assert "'second' needs the caption 'color', which is empty" in failures[0]["message"]
    assert caption(cache, empty).counts.failed == 0
    with catalog_of(cache) as catalog:
        assert catalog.failures.rows() == []


def test_what_is_made_of_a_flagged_caption_is_flagged(cache):
    caption(cache, asked(max_new_tokens=1, retry=False))
    for name, flagged in (("color", False), ("second", True)):
        for row in captions(cache, name).values():
            assert "no_end" in row["flags"]
            assert ("from_flagged" in row["flags"]) == flagged


def test_captions_that_wait_for_a_clip_that_fails_fail_with_it(cache):
    with catalog_of(cache) as catalog:
        key = catalog.clips.rows()[0]["feature_key"]
    FeatureStore.open(cache).path_of(key).unlink()
    report = caption(cache, asked())
    assert (report.counts.done, report.counts.failed) == (2 * NUM_CLIPS - 2, 2)
    assert report.counts.found == report.counts.settled


def test_variables_of_the_clip_are_filled_in(tmp_path):
    (tmp_path / "videos").mkdir()
    write_scene(tmp_path / "videos" / "a film.v2.mp4", 0)
    cut = {"overlap_s": 0.0, "segment_s": 1.5}
    extract([tmp_path / "videos"], tmp_path / "cache", settings(**cut))
    prompts = {"a": "{name}, {start} to {end}, {duration} s"}
    caption(tmp_path / "cache", asked(prompts=prompts))
    with catalog_of(tmp_path / "cache") as catalog:
        told = [row["prompt"] for row in catalog.captions.rows()]
        [video] = catalog.files.videos()
    length = f"{video['duration_s']:.2f}".rstrip("0").rstrip(".")
    assert told[0] == "a film.v2, 0 to 1.5, 1.5 s"
    assert told[-1].startswith(f"a film.v2, 4.5 to {length}, ")


def test_the_name_of_a_file_may_be_no_text(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_scene(tmp_path / "x.mp4", 0)
    (tmp_path / "x.mp4").rename(folder / b"a\xff{start}.mp4".decode(errors="surrogateescape"))
    extract([folder], tmp_path / "cache", settings())
    caption(tmp_path / "cache", asked(prompts={"a": "{name}!"}))
    with catalog_of(tmp_path / "cache") as catalog:
        assert [row["prompt"] for row in catalog.captions.rows()] == [
            "a\N{REPLACEMENT CHARACTER}{start}!"
        ]


def test_a_file_named_like_a_mark_of_the_tokenizer_is_a_file(tmp_path):
    (tmp_path / "videos").mkdir()
    write_scene(tmp_path / "videos" / "<|end_of_text|>.mp4", 0, num_frames=20)
    extract([tmp_path / "videos"], tmp_path / "cache", settings())
    assert caption(tmp_path / "cache", asked(prompts={"a": "{name}: what?"})).counts.done == 1
    row = next(iter(captions(tmp_path / "cache", "a").values()))
    assert row["prompt"] == "< |end_of_text|>: what?"


def test_what_is_filled_in_stands_for_no_video(tmp_path):
    family = family_of(Checkpoint.open(str(zoo.QWEN2_VL.write(tmp_path / "model"))))
    mark = family.processor.placeholder
    assert family.plain(f"a {mark} b") == f"a < {mark[1:]} b"
    with pytest.raises(ConfigError, match="stands 1 times in the laid out prompt, where 0 are"):
        family.text_row(mark, "chat")
    plain = family.text_row(family.plain(mark), "chat").sequences["input_ids"].tolist()
    assert not {*plain} & {*family.processor.slot_ids}


# ---- without the video --------------------------------------------------------------------------


def test_a_text_only_prompt_sees_no_video(cache):
    caption(cache, asked(prompts=CHAIN))
    seeing = captions(cache, "second")
    report = caption(cache, asked(prompts=CHAIN, **WORDS))
    assert (report.counts.done, report.counts.cached) == (NUM_CLIPS, NUM_CLIPS)
    for video, row in captions(cache, "second").items():
        assert row["prompt"] == seeing[video]["prompt"]
        assert row["caption_key"] != seeing[video]["caption_key"]
        assert row["settings"]["generation"]["video"] is False
    assert caption(cache, asked(prompts=CHAIN, **WORDS)).counts.done == 0


def test_a_text_only_caption_is_that_of_the_language_half_asked_alone(cache):
    caption(cache, asked(prompts=CHAIN, **WORDS, compute_dtype="float32"))
    family = family_of(Checkpoint.open("tiny"))
    model = load_half(WholeModel.of(family.checkpoint), "language", dtype=torch.float32).model
    for row in captions(cache, "second").values():
        alone = family.text_row(row["prompt"], "chat")
        limit = 8 * (2 if "retried" in row["settings"] else 1)
        [tokens] = generate(model, family, [alone], Generation(max_new_tokens=limit))
        ended = tokens[-1] in family.stop_ids
        assert row["caption"] == family.text_of(tokens[:-1] if ended else tokens)


def test_text_only_captions_need_no_features(cache):
    with catalog_of(cache) as catalog:
        keys = [clip["feature_key"] for clip in catalog.clips.rows()]
    caption(cache, asked(prompts={"color": COLOR}))
    for key in keys:
        FeatureStore.open(cache).path_of(key).unlink()
    report = caption(cache, asked(prompts=CHAIN, **WORDS))
    assert (report.counts.done, report.counts.failed) == (NUM_CLIPS, 0)
    assert any("decoding: 0 prefills of a video part" in line for line in report.notes)


def test_beams_do_not_mix_rows_with_and_without_a_video(cache):
    caption(cache, asked(limit=1, num_beams=2, prompts={"color": COLOR}))
    report = caption(cache, asked(num_beams=2, **WORDS))
    assert report.counts.done == 2 * NUM_CLIPS - 1


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("color", "prompt 'color' is asked without the video .* names no caption"),
        ("colour", "text_only names no prompt: 'colour'; there are second, color"),
    ],
)
def test_a_text_only_prompt_that_has_nothing_to_go_by_is_refused(name, problem):
    with pytest.raises(ConfigError, match=problem):
        asked(text_only=name)
