"""A cache remembers what it was made with; where no model is named, none is taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner, Result
from scenes import settings, write_scene

from cogcache.cli import main
from cogcache.errors import ConfigError
from cogcache.settings.profile import as_toml, choose_profile, known_part, profile_of
from cogcache.settings.settings import Settings, load_settings
from cogcache.stages.extract import extract
from cogcache.stages.runs.remembered import remember, remembered
from cogcache.store.mark import MARK, read_mark
from cogcache.store.profiles import add_profile, read_profiles
from cogcache.store.store import FeatureStore


@pytest.fixture(autouse=True)
def _no_model_in_the_environment(monkeypatch):
    monkeypatch.delenv("COGCACHE_MODEL", raising=False)


def here(*arguments: object, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, [str(each) for each in arguments])


@pytest.fixture
def cache(tmp_path):
    """A cache of one clip, made with settings that are not the defaults."""
    write_scene(tmp_path / "a.mp4", 0, num_frames=20)
    extract([tmp_path / "a.mp4"], tmp_path / "cache", settings(model="tiny", max_frames=2))
    return tmp_path / "cache"


@pytest.fixture
def empty(tmp_path):
    FeatureStore.create_or_open(tmp_path / "empty")
    return tmp_path / "empty"


@pytest.mark.parametrize("command", ["extract", "caption", "run", "plan"])
def test_without_a_model_a_command_ends_with_the_choices(tmp_path, command):
    write_scene(tmp_path / "a.mp4", 0, num_frames=4)
    cache = [] if command == "plan" else [f"--cache={tmp_path / 'cache'}"]
    videos = [tmp_path / "a.mp4"] if command in ("extract", "run") else []
    result = here(command, *videos, *cache)
    assert result.exit_code == 2
    assert "no model was named" in result.output
    assert "--config cogvlm2-caption" in result.output
    assert "--model tiny" in result.output
    assert not (tmp_path / "cache").exists()


def test_stage_two_takes_model_and_sampling_from_the_cache(cache):
    done = here("caption", f"--cache={cache}", "--max-new-tokens=2", "--no-retry")
    assert done.exit_code == 0, done.output
    assert "1 caption" in done.output


def test_stage_one_goes_on_as_the_cache_was_made_and_makes_nothing_twice(cache, tmp_path):
    done = here("extract", tmp_path / "a.mp4", f"--cache={cache}")
    assert "0 clips made, 1 there already" in done.output


def test_the_cache_and_the_model_are_read_from_the_environment(cache):
    done = here("ls", "clips", "--json", COGCACHE_CACHE=str(cache))
    assert [row["num_frames"] for row in json.loads(done.stdout)] == [2]
    other = here("caption", f"--cache={cache}", COGCACHE_MODEL="some/other")
    assert other.exit_code == 2


def test_later_ones_override_earlier_ones(tmp_path, monkeypatch):
    file = tmp_path / "my.toml"
    file.write_text('model = "toml"\n[sampling]\nwindow_s = 3.0\n')
    profile = {"model": "profile", "sampling": {"max_frames": 5, "window_s": 9.0}}
    found = load_settings(file, {"seed": 1}, profile)
    assert (found.model, found.sampling.max_frames, found.sampling.window_s) == ("toml", 5, 3.0)
    monkeypatch.setenv("COGCACHE_MODEL", "environment")
    assert load_settings(file, {}, profile).model == "environment"
    assert load_settings(file, {"model": "option"}, profile).model == "option"


def test_another_model_than_the_cache_was_made_with_is_told_in_words_with_what_to_type(cache):
    folder = cache.parent / "other"
    folder.mkdir()
    for path in (cache.parent.parent,):
        assert path.is_dir()
    from cogcache.models.checkpoints.checkpoint import Checkpoint

    for path in Checkpoint.open("tiny").folder.iterdir():
        (folder / path.name).symlink_to(path)
    done = here("caption", f"--cache={cache}", f"--model={folder}", "--strategy=spread")
    assert done.exit_code == 2
    assert "made with tiny, 2 frames per_second; you asked for" in done.output
    assert "add --model tiny" in done.output


def test_a_profile_survives_its_file_and_one_of_a_newer_version_is_read(empty):
    made = Settings(model="x", sampling={"max_frames": 7})
    remember(empty, made)
    text = (empty / MARK).read_text()
    (empty / MARK).write_text(text.replace("max_frames", "unheard_of = true\nmax_frames"))
    name, profile = remembered(empty, None, None)
    assert (name, load_settings(None, {}, known_part(profile))) == ("default", made)


def test_a_version_that_knows_no_profiles_still_reads_the_file(empty):
    before = tomllib.loads((empty / MARK).read_text())
    remember(empty, Settings(model="x"))
    after = tomllib.loads((empty / MARK).read_text())
    assert {name: after[name] for name in before} == before
    assert read_mark(empty) is None


def test_profiles_that_are_added_at_once_are_all_kept_and_the_file_is_never_torn(empty):
    profile = profile_of(Settings(model="x"))
    names = [f"p{number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        added = list(pool.map(lambda name: add_profile(empty, name, as_toml(name, profile)), names))
    assert all(added)
    assert {*read_profiles(empty)} == {*names}


def test_a_second_model_is_remembered_under_its_own_name_and_found_by_it(empty):
    remember(empty, Settings(model="tiny", sampling={"max_frames": 2}))
    remember(empty, Settings(model="some/Big-Model", sampling={"max_frames": 3}))
    assert [*read_profiles(empty)] == ["default", "big-model"]
    assert remembered(empty, None, "some/Big-Model")[0] == "big-model"
    assert remembered(empty, None, None)[0] == "default"
    assert remembered(empty, None, "a third") is None


def test_a_named_profile_is_taken_and_one_of_another_model_is_refused():
    profiles = {"default": {"model": "a"}, "b": {"model": "b"}}
    assert choose_profile(profiles, "b", None) == ("b", profiles["b"])
    assert choose_profile(profiles, "new", "c") is None
    with pytest.raises(ConfigError, match="the profile 'b' of the cache is of b, not of a"):
        choose_profile(profiles, "b", "a")


def test_a_cache_made_before_profiles_keeps_its_settings_and_says_so(cache):
    lines = (cache / MARK).read_text().partition("\n[profile")[0]
    (cache / MARK).write_text(lines)
    done = here("caption", f"--cache={cache}", "--max-new-tokens=2", "--no-retry")
    assert done.exit_code == 0, done.output
    assert "has no profile yet; as in its last run: tiny, 2 frames per_second" in done.stderr


def test_settings_by_name_are_listed_copied_and_taken(tmp_path):
    listed = json.loads(here("configs", "--json").stdout)
    assert "cogvlm2-caption" in [row["name"] for row in listed]
    assert here("configs", "tiny", tmp_path / "my.toml").exit_code == 0
    assert load_settings(tmp_path / "my.toml").model == "tiny"
    again = here("configs", "tiny", tmp_path / "my.toml")
    assert again.exit_code == 2
    wrong = here("plan", "--config", "tinny")
    assert "did you mean tiny?" in wrong.output
    assert here("plan", "--config", "tiny", "--memory=4GiB").exit_code == 0


def test_pages_of_the_docs_are_shown_in_the_terminal():
    listed = here("help").output
    assert "long-videos" in listed
    assert "segment" in here("help", "long-videos").output
    assert "--overlap" in here("help", "run").output
    assert "did you mean scale?" in here("help", "scal").output


def test_configs_and_help_need_no_torch():
    code = "import sys; from cogcache.cli import main\ntry: main(['configs'])\nfinally:\n"
    code += " assert not {'torch', 'h5py', 'sqlite3', 'numpy'} & {*sys.modules}, 'heavy'"
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
