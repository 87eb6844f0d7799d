"""Stage two as a whole: several captions a clip, second tries, flags, and what the report says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.rows import CaptionRow
from cogcache.cli import main
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import Settings, load_settings
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.stages.runs.report import RunReport
from cogcache.stages.runs.report_lines import report_lines

DETAIL = "Please describe this video in detail."
PROMPTS = {"color": "What color is the shape?", "detail": DETAIL}
NUM_CLIPS = 3


@pytest.fixture(scope="module")
def extracted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extracted")
    for number in range(NUM_CLIPS):
        write_clip(draw_scene(np.random.default_rng(number)), folder / f"{number}.mp4")
    assert extract([folder], folder / "cache", settings()).counts.done == NUM_CLIPS
    return folder / "cache"


@pytest.fixture
def cache(extracted, tmp_path) -> Path:
    return Path(shutil.copytree(extracted, tmp_path / "cache"))


def settings(**changes: object) -> Settings:
    given = {"quantization": "none", "compute_dtype": "float32", "prompts": PROMPTS, **changes}
    given |= {"decode_workers": 1}
    return load_settings(None, given)


def made(cache: Path, **changes: object) -> tuple[RunReport, list[CaptionRow]]:
    report = caption(cache, settings(**changes))
    with Catalog(cache / "catalog.sqlite") as catalog:
        return report, catalog.captions.rows()


def texts(rows: list[CaptionRow]) -> list[tuple[str, str, str]]:
    return sorted((row["video"], row["prompt"], row["caption"]) for row in rows)


def test_all_prompts_of_a_clip_share_one_prefill_and_the_report_says_so(cache):
    report, rows = made(cache)
    assert len(rows) == 2 * NUM_CLIPS
    assert any(
        f"{NUM_CLIPS} prefills of a video part" in line
        for line in report_lines(report, verbose=True)
    )


def test_good_captions_have_no_flags_and_no_second_try(cache):
    _, rows = made(cache)
    assert [row["flags"] for row in rows] == [[]] * len(rows)
    assert all("retried" not in row["settings"] for row in rows)


def test_captions_do_not_depend_on_the_batch_they_rode_in(cache, tmp_path):
    other = shutil.copytree(cache, tmp_path / "other")
    drawing = {"do_sample": True, "temperature": 1.5, "n": 2}
    _, alone = made(cache, clips_per_batch=1, **drawing)
    _, together = made(other, clips_per_batch=5, **drawing)
    assert texts(alone) == texts(together)
    assert len(texts(alone)) == 4 * NUM_CLIPS


def test_more_captions_of_a_prompt_are_added_to_those_there(cache):
    drawing = {"do_sample": True, "temperature": 2.0}
    _, two = made(cache, n=2, **drawing)
    report, three = made(cache, n=3, **drawing)
    assert (report.counts.cached, report.counts.done) == (4 * NUM_CLIPS, 2 * NUM_CLIPS)
    assert {*texts(two)} <= {*texts(three)}
    assert len({*texts(three)}) > len({*texts(two)})


def test_a_caption_without_an_end_is_made_once_more_with_twice_the_room(cache):
    _, rows = made(cache, prompts={"detail": DETAIL}, max_new_tokens=10)
    retried = [row["settings"]["retried"] for row in rows if "retried" in row["settings"]]
    changes = {"because": ["no_end"], "changes": {"max_new_tokens": 20}}
    assert retried
    assert retried == [changes] * len(retried)
    assert [row["flags"] for row in rows] == [[]] * NUM_CLIPS
    assert all(row["caption"].endswith(".") for row in rows)


def test_a_caption_that_stays_bad_is_stored_with_its_flag(cache):
    _, rows = made(cache, prompts={"detail": DETAIL}, max_new_tokens=3)
    assert [row["flags"] for row in rows] == [["no_end"]] * NUM_CLIPS
    _, rows = made(cache, prompts={"color": PROMPTS["color"]})
    arguments = ["ls", "--flagged", "--json", "--cache", str(cache)]
    flagged = json.loads(CliRunner().invoke(main, arguments).output)
    assert {row["prompt"] for row in flagged} == {DETAIL}
    assert len(flagged) == NUM_CLIPS


def test_captions_of_several_prompts_are_listed_side_by_side(cache):
    _, rows = made(cache)
    arguments = ["ls", "--side-by-side", "--cache", str(cache)]
    shown = CliRunner().invoke(main, arguments).output
    assert shown.split()[:5] == ["video", "start_s", "end_s", "color:", "detail:"]
    listed = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
    assert [sorted(clip["captions"]) for clip in listed] == [["color", "detail"]] * NUM_CLIPS
    said = {(clip["video"], *each) for clip in listed for each in clip["captions"].items()}
    assert said == {(row["video"], row["prompt_name"], row["caption"]) for row in rows}
    few = json.loads(CliRunner().invoke(main, [*arguments, "--json", "--limit", "2"]).output)
    assert few == listed[:2]
    refused = CliRunner().invoke(main, [*arguments, "--columns", "video"])
    assert refused.exit_code == 2
    assert "leave out --columns" in refused.output


def test_a_drawn_caption_that_is_empty_is_drawn_anew_with_other_random_numbers(cache):
    drawing = {"do_sample": True, "temperature": 3.0, "top_k": 0, "n": 8, "max_new_tokens": 8}
    _, rows = made(cache, stop=[*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"aeiou"], **drawing)
    again = [row for row in rows if row["settings"].get("retried", {}).get("because") == ["empty"]]
    assert len(again) > 5
    assert any(row["caption"] for row in again)


def test_beams_do_not_run_over_the_context_either(cache, monkeypatch):
    for module in ("batches", "decoder"):
        monkeypatch.setattr(f"cogcache.generation.{module}.context_of", lambda model: 44)
    asked = {"prompts": {"detail": DETAIL}, "retry": False}
    _, alone = made(cache, **asked)
    _, rows = made(cache, **asked, num_beams=2)
    rows = [row for row in rows if row["settings"]["generation"]["num_beams"] == 2]
    room = {row["video"]: row["num_tokens"] for row in alone}
    assert {1 < each < 20 for each in room.values()} == {True}
    assert {row["video"]: row["num_tokens"] for row in rows} == room
    assert [row["flags"] for row in alone + rows] == [["no_end", "over_context"]] * 2 * NUM_CLIPS


def test_no_retry_keeps_the_first_caption(cache):
    _, rows = made(cache, prompts={"detail": DETAIL}, max_new_tokens=3, retry=False)
    assert [row["flags"] for row in rows] == [["no_end"]] * NUM_CLIPS
    assert all(row["num_tokens"] == 3 for row in rows)


def test_a_stop_text_is_left_out(cache):
    _, rows = made(cache, prompts={"detail": DETAIL}, stop=" on a")
    assert all(" on" not in row["caption"] and row["caption"] for row in rows)
    assert [row["flags"] for row in rows] == [[]] * NUM_CLIPS


def test_beams_share_nothing_and_the_report_says_so(cache):
    report, rows = made(cache, num_beams=2, keep_prefix=str(cache / "prefixes"))
    assert len(rows) == 2 * NUM_CLIPS
    told = "share no prefill: beams, and --keep-prefix keeps none"
    assert any(told in line for line in report_lines(report, verbose=True))
