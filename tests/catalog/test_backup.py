"""The backup of the last good run gives back what cannot be read any more, once that is asked."""

from __future__ import annotations

import shutil

import pytest
from click.testing import CliRunner

from cogcache.catalog.backup import with_room
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.published import open_catalog
from cogcache.catalog.upkeep.verify import verify
from cogcache.cli import main
from tests.support.caches import caption_of, make_cache

NAME = "catalog.backup.sqlite"
NUM_CLIPS = 4


@pytest.fixture
def cache(tmp_path):
    """A cache whose last run ended well; one caption is newer than its backup."""
    make_cache(tmp_path, NUM_CLIPS)
    cache = tmp_path / "cache"
    with open_catalog(cache, None, None):
        pass
    with Catalog(cache / "catalog.sqlite") as catalog:
        row = caption_of(catalog.clips.rows()[0])
        catalog.captions.add([{**row, "caption_key": "n" * 64, "caption": "made since"}])
    return cache


def damage(cache, *texts: bytes) -> None:
    path = cache / "catalog.sqlite"
    content = bytearray(path.read_bytes())
    for text in texts:
        places = [n for n in range(len(content)) if content.startswith(text, n)]
        for place in places:
            content[place] ^= 1
    path.write_bytes(content)


def captions(cache) -> list[str]:
    with Catalog(cache / "catalog.sqlite") as catalog:
        return sorted(row["caption"] for row in catalog.captions.rows())


def typed(*arguments: object):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_a_rebuild_offers_the_backup_and_the_backup_gives_back_what_is_damaged(cache):
    before = captions(cache)
    damage(cache, b"What is seen in")
    assert typed("ls", "--cache", cache).exit_code != 0
    first = typed("rebuild", "--cache", cache)
    assert first.exit_code == 1
    assert "cogcache rebuild --from-backup" in first.stdout
    assert captions(cache) == ["made since"]
    second = typed("rebuild", "--from-backup", "--cache", cache)
    assert second.exit_code == 0, second.output
    assert captions(cache) == before
    assert verify(cache) == []


def test_what_was_made_since_the_backup_and_is_whole_stays(cache):
    before = captions(cache)
    damage(cache, b"What is seen in")
    assert typed("rebuild", "--from-backup", "--cache", cache).exit_code == 0
    assert captions(cache) == before


def test_a_catalog_of_which_nothing_is_left_is_as_it_was_at_the_last_good_run(cache):
    before = captions(cache)
    path = cache / "catalog.sqlite"
    path.write_bytes(bytes(path.stat().st_size))
    typed("rebuild", "--from-backup", "--cache", cache)
    assert captions(cache) == [text for text in before if text != "made since"]
    assert verify(cache) == []


def test_a_damaged_backup_puts_nothing_wrong_into_the_catalog(cache):
    damage(cache, b"What is seen in")
    (cache / NAME).write_bytes((cache / NAME).read_bytes().replace(b"What is", b"Whet is"))
    assert typed("rebuild", "--from-backup", "--cache", cache).exit_code == 1
    assert captions(cache) == ["made since"]


def test_without_a_backup_it_is_said_that_there_is_none(cache):
    (cache / NAME).unlink()
    before = captions(cache)
    done = typed("rebuild", "--from-backup", "--cache", cache)
    assert done.exit_code == 2
    assert "has no backup" in done.stderr
    assert captions(cache) == before


def test_a_run_that_ends_with_an_error_leaves_the_backup_of_the_one_before(cache):
    before = (cache / NAME).read_bytes()
    with pytest.raises(ValueError, match="a bug"), open_catalog(cache, None, None):
        raise ValueError("a bug")
    assert (cache / NAME).read_bytes() == before
    with open_catalog(cache, None, None):
        pass
    assert (cache / NAME).read_bytes() != before
    assert len([*cache.glob("*backup*")]) == 1


def test_a_change_that_fails_for_another_reason_than_room_leaves_the_backup(cache):
    def change() -> None:
        with Catalog(cache / "catalog.sqlite") as catalog:
            catalog.clips.resize("nobody", 1)
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        with_room(cache, change)
    assert (cache / NAME).is_file()


def test_a_backup_can_be_opened_as_a_catalog(cache, tmp_path):
    copy = tmp_path / "copy.sqlite"
    shutil.copy(cache / NAME, copy)
    with Catalog(copy) as catalog:
        assert len(catalog.captions.rows()) == NUM_CLIPS
