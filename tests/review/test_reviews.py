"""Captions are corrected in versions: nothing is lost, and all commands hear of it."""

from __future__ import annotations

import json
import sqlite3

import pytest
from click.testing import CliRunner

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.full_text import CaptionSearch
from cogcache.catalog.search.selection import Selection
from cogcache.catalog.upkeep.merge import merge
from cogcache.catalog.upkeep.rebuild import rebuild
from cogcache.catalog.upkeep.unused import collect
from cogcache.cli import main
from cogcache.errors import ConfigError
from cogcache.export.exporting import Options, export
from cogcache.export.importing import import_captions
from cogcache.review.differences import differences
from cogcache.review.replacing import Rewriting
from cogcache.review.reviews import Reviews
from cogcache.training.examples import choose
from tests.support.caches import make_cache


@pytest.fixture
def cache(tmp_path):
    make_cache(tmp_path, 4)
    return tmp_path / "cache"


@pytest.fixture
def catalog(cache):
    with Catalog(cache / "catalog.sqlite") as opened:
        yield opened


@pytest.fixture
def reviews(catalog):
    return Reviews(catalog, author="reviewer 1")


@pytest.fixture
def typed(cache):
    """Return a function that runs a command on the cache and returns what came of it."""

    def run(*words, expect=0):
        done = CliRunner().invoke(main, [*map(str, words), "--cache", str(cache)])
        assert done.exit_code == expect, done.output
        return done

    return run


def texts(catalog, **which):
    with Catalog(catalog.path) as opened:
        rows = opened.captions.rows()
        where, values = Selection(**which).usable()
        passing = opened.captions.passing(where or "true", values)
    return sorted(row["caption"] for row in rows if row["id"] in passing)


def test_an_edit_stands_beside_what_the_model_wrote(catalog, reviews):
    first = reviews.chosen()[0]
    assert reviews.edit(first, "A red ball.").changed == 1
    rows = {row["model"]: row for row in catalog.captions.rows(feature_keys=[
        first.caption["feature_key"]])}  # fmt: skip
    assert rows["made-up"]["caption"] == first.caption["caption"]
    assert rows["reviewed"]["caption"] == "A red ball."
    (again,) = [each for each in reviews.chosen() if each.key == first.key]
    assert (again.text, again.state, again.is_edited) == ("A red ball.", "accepted", True)


def test_history_has_every_version_with_time_author_and_what_was_there(catalog, reviews):
    first = reviews.chosen()[0]
    for text in ("one", "two"):
        reviews.edit(reviews.of_keys([first.key])[first.key], text)
    Reviews(catalog, author="reviewer 2").reject([reviews.of_keys([first.key])[first.key]])
    history = catalog.edits.history(first.key)
    assert [row["text"] for row in history] == ["one", "two", "two"]
    assert [row["was"] for row in history] == [first.text, "one", "two"]
    assert [row["author"] for row in history] == ["reviewer 1", "reviewer 1", "reviewer 2"]
    assert sorted(row["created_at"] for row in history) == [row["created_at"] for row in history]


def test_undo_goes_back_step_by_step_and_the_set_follows(catalog, reviews):
    key = reviews.chosen()[0].key
    for text in ("one", "two"):
        reviews.edit(reviews.of_keys([key])[key], text)
    seen = []
    for _ in range(3):
        outcome = reviews.undo([reviews.of_keys([key])[key]])
        seen.append((outcome.changed, [r["caption"] for r in catalog.captions.rows(
            model="reviewed")]))  # fmt: skip
    assert seen == [(1, ["one"]), (1, []), (0, [])]
    assert len(catalog.edits.history(key)) == 4


def test_a_rejected_caption_is_left_out_of_exports_and_training_and_counted(
    cache, catalog, reviews, tmp_path
):
    reviews.reject(reviews.chosen()[:1])
    out = tmp_path / "out.jsonl"
    done = export(catalog.path, out, "jsonl", Selection(), Options())
    assert (done.captions, done.rejected) == (3, 1)
    assert len(choose(catalog.path, Selection(), {}, {})) == 3
    everything = Selection(include_rejected=True)
    done = export(catalog.path, tmp_path / "all.jsonl", "jsonl", everything, Options())
    assert (done.captions, done.rejected) == (4, 0)
    assert len(choose(catalog.path, everything, {}, {})) == 4


def test_an_edited_caption_that_is_rejected_goes_with_its_edit(catalog, reviews):
    first = reviews.chosen()[0]
    reviews.edit(first, "edited")
    reviews.reject([reviews.of_keys([first.key])[first.key]])
    assert "edited" not in texts(catalog)
    assert first.caption["caption"] not in texts(catalog)
    assert "edited" in texts(catalog, include_rejected=True)


def test_prefer_takes_the_edited_one_where_there_is_one(cache, catalog, reviews, typed, tmp_path):
    first, *others = reviews.chosen()
    reviews.edit(first, "a zebra edited")
    preferred = {"prefer": ("reviewed", "made-up")}
    assert texts(catalog, **preferred) == sorted(["a zebra edited", *(o.text for o in others)])
    assert texts(catalog, prefer=("made-up", "reviewed")) == sorted(
        [first.text, *(o.text for o in others)]
    )
    chosen = choose(catalog.path, Selection(**preferred), {}, {})
    assert "a zebra edited" in {each.caption for each in chosen}
    assert len(chosen) == 4
    listed = json.loads(typed("ls", "--prefer", "reviewed,made-up", "--json").stdout)
    assert {row["caption"] for row in listed} == {"a zebra edited", *(o.text for o in others)}
    with CaptionSearch(catalog.path) as index:
        assert len(index.search("zebra", Selection(**preferred)).hits) == 1
        assert index.search("zebra", Selection(prefer=("made-up",))).hits == []


def test_of_two_that_review_at_once_the_second_is_told(catalog, reviews):
    seen = reviews.chosen()[0]
    Reviews(catalog, author="reviewer 2").edit(seen, "hers")
    outcome = reviews.edit(seen, "mine")
    assert (outcome.changed, outcome.conflicts) == (0, [seen.key])
    assert reviews.of_keys([seen.key])[seen.key].text == "hers"


def test_states_and_tags_are_filters(catalog, reviews):
    one, two, three, four = reviews.chosen()
    reviews.accept([one])
    reviews.reject([two])
    reviews.tag([three], ["blurred"])
    everything = {"include_rejected": True}
    assert texts(catalog, states=("accepted",)) == [one.text]
    assert texts(catalog, states=("rejected",), **everything) == [two.text]
    assert texts(catalog, states=("unreviewed",)) == sorted([three.text, four.text])
    assert texts(catalog, tags=("blurred",)) == [three.text]


def test_replace_changes_whole_words_and_one_undo_takes_all_back(catalog, reviews):
    before = texts(catalog)
    changes = Rewriting("What", "All").preview(reviews.chosen())
    assert len(changes) == 4
    reviews.rewrite({c.reviewed.key: c.after for c in changes}, [c.reviewed for c in changes])
    assert all(each.text.startswith("All is seen") for each in reviews.chosen())
    assert not any(each.state for each in reviews.chosen())  # nobody has looked at each
    assert reviews.undo_batch().changed == 4
    assert texts(catalog) == before
    assert reviews.undo_batch().changed == 0


def test_undo_of_a_bulk_change_leaves_what_was_edited_since(catalog, reviews):
    changes = Rewriting("What", "All").preview(reviews.chosen())
    done = reviews.rewrite(
        {c.reviewed.key: c.after for c in changes}, [c.reviewed for c in changes]
    )
    first = reviews.chosen()[0]
    reviews.edit(first, "since then")
    outcome = reviews.undo_batch(done.batch)
    assert (outcome.changed, outcome.conflicts) == (3, [first.key])
    assert reviews.of_keys([first.key])[first.key].text == "since then"


@pytest.mark.parametrize(
    ("how", "text", "after"),
    [
        ({"old": "dog", "new": "wolf"}, "A dog, a dogfish.", "A wolf, a dogfish."),
        ({"old": r"(\w+) and \1", "new": r"\1", "regex": True}, "dogs and dogs", "dogs"),
        ({"old": "Dog", "new": "Cat", "ignore_case": True}, "dog Dog", "Cat Cat"),
        ({"old": "(a)", "new": r"\1"}, "so (a).", r"so \1."),
        ({"old": "blue"}, "Two blue circles, all blue.", "Two circles, all."),
        ({"old": "blue"}, "blue sky", "sky"),
        ({"prefix": "Film: "}, "Film: x", "Film: x"),
        ({"trigger": "SKS", "suffix": " End."}, "x", "SKS, x End."),
    ],
)
def test_a_rewriting_changes_what_was_named_and_nothing_twice(how, text, after):
    assert Rewriting(**how).of(text) == after
    if "regex" not in how:
        assert Rewriting(**how).of(after) == after


@pytest.mark.parametrize(
    "how", [{}, {"old": "(", "regex": True}, {"old": "x*", "regex": True}], ids=str
)
def test_a_rewriting_that_means_nothing_is_refused(how):
    with pytest.raises(ConfigError):
        Rewriting(**how)


def test_differences_make_up_both_texts():
    parts = differences("A red ball, it rolls.", "A blue ball; it rolls on.")
    assert "".join(p.text for p in parts if p.kind != "new") == "A red ball, it rolls."
    assert "".join(p.text for p in parts if p.kind != "gone") == "A blue ball; it rolls on."
    assert [p.text for p in parts if p.kind == "gone"] == ["red", ","]


def test_reviews_outlive_rebuild_gc_and_merge(cache, catalog, reviews, tmp_path):
    first, second = reviews.chosen()[:2]
    reviews.edit(first, "edited")
    reviews.reject([second])
    catalog.close()
    (tmp_path / "0.mp4").unlink()
    collect(cache, remove=True)
    assert rebuild(cache).is_whole
    merge([cache], tmp_path / "merged")
    for folder in (cache, tmp_path / "merged"):
        with Catalog(folder / "catalog.sqlite") as opened:
            again = Reviews(opened).of_keys([first.key, second.key])
            assert again[first.key].text == "edited"
            assert again[second.key].state == "rejected"
            assert [row["caption"] for row in opened.captions.rows(model="reviewed")] == ["edited"]


def test_of_two_caches_the_newer_version_counts_after_a_merge(cache, catalog, tmp_path):
    merge([cache], tmp_path / "other")
    with Catalog(tmp_path / "other/catalog.sqlite") as opened:
        other = Reviews(opened, author="reviewer 2")
        first = other.chosen()[0]
        other.edit(first, "older")
    Reviews(catalog).edit(first, "newer")
    catalog.close()
    for _ in range(2):
        merge([cache], tmp_path / "other")
    with Catalog(tmp_path / "other/catalog.sqlite") as opened:
        assert Reviews(opened).of_keys([first.key])[first.key].text == "newer"
        assert [row["text"] for row in opened.edits.history(first.key)] == ["older", "newer"]
        assert [row["caption"] for row in opened.captions.rows(model="reviewed")] == ["newer"]


@pytest.mark.parametrize("captions_there", [True, False])
def test_reviews_go_out_with_an_export_and_come_back(
    cache, catalog, reviews, tmp_path, captions_there
):
    first, second = reviews.chosen()[:2]
    reviews.edit(first, "edited")
    reviews.tag([second], ["blurred"])
    file = tmp_path / "out.jsonl"
    export(catalog.path, file, "jsonl", Selection(models=("made-up",)), Options())
    make_cache(tmp_path / "again", 4)
    target = tmp_path / "again/cache/catalog.sqlite"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    with Catalog(target) as opened:
        keys = {row["feature_key"] for row in opened.clips.rows()}
        assert {row["feature_key"] for row in rows} == keys
    if not captions_there:
        with sqlite3.connect(target) as conn:
            conn.execute("DELETE FROM captions")
        conn.close()
    for times in range(2):
        done = import_captions(file, target, "taken")
        assert done.reviews == (0 if times else 2)
    with Catalog(target) as opened:
        found = Reviews(opened).chosen()
        assert [row["caption"] for row in opened.captions.rows(model="reviewed")] == ["edited"]
    assert [each.tags for each in found if each.tags] == [["blurred"]]


def test_the_commands_review_by_number_and_by_filter(catalog, typed, tmp_path):
    rows = json.loads(typed("review", "list", "--json").stdout)
    ids = [row["id"] for row in rows]
    typed("review", "accept", ids[0])
    typed("review", "reject", "--in", tmp_path / "1.mp4")
    typed("review", "edit", ids[2], "A red ball.", "--author", "reviewer 1")
    typed("review", "tag", ids[3], "--add", "dark")
    rows = {row["id"]: row for row in json.loads(typed("review", "list", "--json").stdout)}
    found = [(rows[n]["state"], rows[n]["tags"], rows[n]["edited"]) for n in ids]
    assert found == [
        ("accepted", [], False),
        ("rejected", [], False),
        ("accepted", [], True),
        ("", ["dark"], False),
    ]
    (version,) = json.loads(typed("review", "history", ids[2], "--json").stdout)
    assert (version["author"], version["text"]) == ("reviewer 1", "A red ball.")
    assert "no caption is named" in typed("review", "accept", expect=2).output
    typed("review", "undo", ids[2])
    typed("review", "undo")
    rows = {row["id"]: row for row in json.loads(typed("review", "list", "--json").stdout)}
    assert [rows[n]["edited"] for n in ids] == [False] * 4
    assert rows[ids[3]]["tags"] == []


def test_replace_shows_every_change_and_makes_none_until_told(catalog, typed):
    shown = typed("replace", "seen", "heard").output
    assert shown.count("[-seen-]{+heard+}") == 4
    assert "--yes" in shown
    assert catalog.captions.rows(model="reviewed") == []
    typed("replace", "seen", "heard", "--yes")
    assert len(catalog.captions.rows(model="reviewed")) == 4
    typed("review", "undo")
    assert catalog.captions.rows(model="reviewed") == []


def test_a_set_is_not_edited_into_that_a_model_or_an_import_has_made(catalog, reviews):
    taken = Reviews(catalog, "made-up")
    with pytest.raises(ConfigError, match="'made-up' is a model"):
        taken.edit(taken.chosen()[0], "x")
