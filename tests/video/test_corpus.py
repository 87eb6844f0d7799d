"""One run over a folder with a file of every kind: the good are captioned, the bad told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from corpus import BAD, GOOD, SUSPECT, write_corpus
from scenes import catalog_of, partial_files, settings

from cogcache.catalog.rows import text_to_path
from cogcache.catalog.upkeep.verify import verify
from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore


@dataclass
class Ran:
    """What one `cogcache run` over the corpus did."""

    folder: Path
    cache: Path
    done: subprocess.CompletedProcess[str]
    captioned: set[str]
    failures: dict[str, str]

    @property
    def said(self) -> str:
        return self.done.stdout + self.done.stderr


def cogcache(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cogcache", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    folder, cache = root / "videos", root / "cache"
    write_corpus(folder)
    options = ("--max-new-tokens", 3, "--quantization", "none", "--decode-workers", 1)
    done = cogcache("run", folder, "--cache", cache, *options)
    with catalog_of(cache) as catalog:
        captions = {text_to_path(row["video"]) for row in catalog.captions.rows() if row["caption"]}
        failures = {text_to_path(row["video"]): row["reason"] for row in catalog.failures.rows()}
    return Ran(
        folder,
        cache,
        done,
        {os.fspath(path.relative_to(folder)) for path in captions},
        {os.fspath(path.relative_to(folder)): reason for path, reason in failures.items()},
    )


def test_there_are_at_least_forty_kinds_of_odd_and_bad_files():
    plain = [name for name in GOOD if name.startswith("plain")]
    assert len(GOOD) - len(plain) + len(BAD) + len(SUSPECT) >= 60
    assert len(BAD) >= 20


@pytest.mark.parametrize("name", [*GOOD, *SUSPECT])
def test_a_file_that_can_be_decoded_is_captioned(ran, name):
    found = "folder.mp4/inside.mp4" if name == "folder.mp4" else name
    assert found in ran.captioned, ran.failures.get(found)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_has_its_reason(ran, name):
    assert ran.failures.get(name) == BAD[name][1]


def test_no_other_file_fails(ran):
    assert set(ran.failures) == set(BAD)


def test_the_exit_status_says_that_some_failed(ran):
    assert ran.done.returncode == 1


def test_there_is_no_traceback(ran):
    assert "Traceback" not in ran.said
    assert "Error" not in ran.said


def test_the_report_counts_them(ran):
    assert f"{len(BAD)} failed" in ran.done.stdout


def test_what_is_wrong_with_a_file_is_kept_with_its_features(ran):
    store = FeatureStore.open(ran.cache)
    told = [store.describe(key) for key in store]
    suspect = {Path(each["video"]).name for each in told if each["suspect"]}
    assert suspect & {*GOOD, *SUSPECT} == {*SUSPECT}


def test_failures_are_listed_as_json(ran):
    listed = cogcache("failures", "--cache", ran.cache, "--json")
    rows = json.loads(listed.stdout)
    assert len(rows) == len(BAD)
    assert {"video", "stage", "reason", "message", "tries"} <= set(rows[0])


def test_a_second_run_makes_and_tries_nothing(ran):
    report = extract([ran.folder], ran.cache, settings())
    assert (report.counts.done, report.counts.skipped) == (0, len(BAD) - 4)
    # Those whose bytes cannot be read are looked at each time: empty, two links, a pipe.
    assert report.counts.failed == 4


def test_the_cache_is_sound_and_holds_no_litter(ran):
    assert verify(ran.cache) == []
    assert not partial_files(ran.cache)
    assert not [*(ran.cache / "claims").iterdir(), *(ran.cache / "working").iterdir()]


def test_strict_fails_what_is_suspect_and_nothing_else(ran, tmp_path):
    names = [*SUSPECT, "plain.mp4", "b frames.mp4"]
    report = extract([ran.folder / n for n in names], tmp_path / "cache", settings(strict=True))
    with catalog_of(tmp_path / "cache") as catalog:
        failures = {Path(row["video"]).name: row["reason"] for row in catalog.failures.rows()}
    assert failures == dict.fromkeys(SUSPECT, "suspect")
    assert report.counts.done == 2
