from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from cogcache.errors import CogcacheError, ConfigError
from cogcache.settings.settings import TABLES, Leaf, Settings, leaves, load_settings
from cogcache.settings.toml_files import read_toml

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


@pytest.fixture(autouse=True)
def _no_model_in_the_environment(monkeypatch):
    monkeypatch.delenv("COGCACHE_MODEL", raising=False)


def value_of(settings: Settings, leaf: Leaf) -> object:
    table = settings if leaf.table == "model" else getattr(settings, leaf.table)
    return getattr(table, leaf.name)


def test_nothing_given_gives_the_defaults():
    assert load_settings() == Settings()


def test_the_file_overrides_defaults_and_options_override_the_file(toml):
    path = toml("[sampling]\nmax_frames = 12\nwindow_s = 30.0")
    settings = load_settings(path, {"max_frames": 6, "strategy": None})
    assert (settings.sampling.max_frames, settings.sampling.window_s) == (6, 30.0)
    assert settings.sampling.strategy == "per_second"


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().sampling.max_frames = 3


def test_names_of_settings_are_unique_over_all_tables():
    names = [leaf.name for leaf in leaves(*TABLES)] + ["prompts", "prompt", "config", "cache"]
    assert len({*names, *TABLES[1:]}) == len(names) + len(TABLES[1:])


def test_every_setting_is_described():
    for leaf in leaves(*TABLES):
        assert re.fullmatch(r"\S.{15,}\.", leaf.description), leaf.name


def test_numbers_with_a_unit_say_it_in_their_name():
    for leaf in leaves(*TABLES):
        if "Seconds" in leaf.description:
            assert leaf.name.endswith("_s")


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        (
            "[sampling]\nmax_frame = 3",
            "unknown key 'max_frame' under [sampling]",
            "did you mean max_frames under [sampling]?",
        ),
        (
            "max_frames = 3",
            "unknown key 'max_frames'",
            "did you mean max_frames under [sampling]?",
        ),
        (
            "[sampling]\nmax-frames = 3",
            "unknown key 'max-frames' under [sampling]",
            "did you mean max_frames under [sampling]?",
        ),
        (
            "[samplings]\nmax_frames = 3",
            "unknown key 'samplings'",
            "did you mean the table [sampling]?",
        ),
        (
            "xyzzy = 3",
            "unknown key 'xyzzy'",
            "known here: model, revision, profile, device, memory, prompts, prompt_sets; "
            "`cogcache help settings` has them all",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest(toml, text, problem, hint):
    path = toml(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert (caught.value.problem, caught.value.hint) == (f"{path}: {problem}", hint)


def test_an_unknown_override_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown key 'frames'") as caught:
        load_settings(None, {"frames": 3})
    assert "max_frames under [sampling]" in caught.value.hint


@pytest.mark.parametrize(
    ("table", "line", "wanted"),
    [
        ("sampling", "max_frames = '3'", 'a whole number, not "3"'),
        ("sampling", "max_frames = 3.5", "a whole number, not 3.5"),
        ("sampling", "max_frames = true", "a whole number, not true"),
        ("sampling", "max_frames = 0", "greater than or equal to 1, not 0"),
        ("sampling", "max_frames = {a = 1}", "a whole number"),
        ("sampling", "window_s = nan", "a finite number, not nan"),
        ("sampling", "window_s = 0", "greater than 0, not 0"),
        ("sampling", "window_s = '1'", 'a number, not "1"'),
        (
            "sampling",
            "strategy = 'chat'",
            'one of per_second, uniform, spread or published, not "chat"',
        ),
        ("clips", "segment_s = -1", "greater than 0, not -1"),
        ("clips", "segment_s = false", "a number, not false"),
        ("language", "double_quant = 1", "true or false, not 1"),
        ("generation", "top_p = 1.5", "less than or equal to 1, not 1.5"),
    ],
)
def test_a_wrong_value_is_told_with_file_key_and_table(toml, table, line, wanted):
    path = toml(f"[{table}]\n{line}")
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    place = f"{line.split()[0]} under [{table}]"
    assert caught.value.problem == f"{path}: {place} must be {wanted}"
    assert caught.value.hint.startswith(f"set {place} in the file of --config, or give --")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("memory = '8 pounds'", 'memory must be auto, or a size such as 8GiB, not "8 pounds"'),
        (
            "[summary]\nsummary_prompt = ''",
            'summary_prompt under [summary] must be a text that is not empty, not ""',
        ),
        (
            "[prompt_sets.short]\ncolor = ''",
            "prompt 'color' must be a text that is not empty, not \"\"",
        ),
        ("device = 'gpu'", 'device must be one of auto, cpu, cuda, cuda:1, mps, xpu, not "gpu"'),
        ("model = 3", "model must be text in quotes, not 3"),
        ("[model]\nname = 'tiny'", "model must be text in quotes"),
        ("sampling = 3", "sampling must be a table, a line with its name in brackets, not 3"),
        ("[prompts]", "prompts must be a table with at least one line"),
        ("[prompts]\nx = 1", "prompt 'x' must be text in quotes, not 1"),
        ("[prompts]\nx = ' '", "prompt 'x' must be a text that is not empty, not \" \""),
        ("[prompts]\n'a b' = ''", "prompt 'a b' must be named with letters, digits, - and _ only"),
    ],
)
def test_a_wrong_value_above_the_tables_is_told_with_file_and_key(toml, text, problem):
    path = toml(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert caught.value.problem.splitlines()[0] == f"{path}: {problem}"


def test_a_wrong_value_of_an_option_is_told_with_the_option(toml):
    with pytest.raises(ConfigError) as caught:
        load_settings(toml("[sampling]\nmax_frames = 3"), {"max_frames": 0})
    assert caught.value.problem.startswith("--max-frames: max_frames under [sampling] must be")
    assert caught.value.hint.endswith("or give --max-frames")


def test_a_prompt_that_is_wrong_in_the_file_is_told_with_the_file(toml):
    path = toml("[prompts]\na = '{x}'\n[generation]\njson_schema = 'none.json'")
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {"model": "tiny", "seed": 1})
    lines = caught.value.problem.splitlines()
    assert [line.startswith(f"{path}: ") for line in lines] == [True, True]


def test_all_wrong_values_are_told_at_once(toml):
    path = toml("[sampling]\nmax_frames = 0\nwindow_s = 0\nstrategy = 1\n[generation]\nseed = -1")
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert len(caught.value.problem.splitlines()) == 4


def test_a_long_list_of_wrong_values_is_cut(toml):
    lines = [f"p{number} = {number}" for number in range(8)]
    with pytest.raises(ConfigError, match="and 3 more"):
        load_settings(toml("\n".join(["[prompts]", *lines])))


@pytest.mark.parametrize("option", [{"temperature": 0.1}, {"top_p": 0.1}, {"top_k": 1}])
def test_an_option_that_would_do_nothing_is_refused(option):
    with pytest.raises(ConfigError, match=r"has no effect while do_sample is false: set do_sample"):
        load_settings(None, option)
    assert load_settings(None, {**option, "do_sample": True}).generation.do_sample


def test_zero_and_empty_text_stand_for_none(toml):
    settings = load_settings(toml('revision = ""\n[clips]\nsegment_s = 0'))
    assert (settings.revision, settings.clips.segment_s) == (None, None)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*none\.toml"):
        load_settings(tmp_path / "none.toml")


def test_a_folder_instead_of_a_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_settings(tmp_path)


def test_broken_toml_is_told_with_its_line(toml):
    with pytest.raises(ConfigError, match=r"my\.toml is not valid TOML: .*\(at line 2, column 9\)"):
        load_settings(toml("[sampling]\nmodel = tiny"))


def test_a_file_that_is_no_text_is_told(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"\x00\x00\xff\xfe")
    with pytest.raises(ConfigError, match=r"video\.mp4 is not a text file in UTF-8"):
        load_settings(path)


def test_a_file_with_the_mark_of_windows_editors_is_read(tmp_path):
    path = tmp_path / "my.toml"
    path.write_bytes(b"\xef\xbb\xbfmodel = 'x'\r\n")
    assert load_settings(path).model == "x"


def test_errors_of_settings_are_cogcache_errors_and_value_errors():
    with pytest.raises(CogcacheError) as caught:
        load_settings(None, {"seed": -1})
    assert isinstance(caught.value, ValueError)


# Files in configs/


def test_there_are_files_to_start_from():
    names = {path.stem for path in CONFIGS}
    assert names >= {"cogvlm2-caption", "long-videos", "short-answers", "tiny"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_file_in_configs_loads_and_is_complete(path):
    load_settings(path)
    values = read_toml(path)
    given = {(key, "model") for key, value in values.items() if not isinstance(value, dict)}
    given |= {(key, table) for table in TABLES[1:] for key in values[table]}
    assert given == {(leaf.name, leaf.table) for leaf in leaves(*TABLES)}
    assert values["prompts"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_lines_in_configs_say_the_default_where_they_differ_from_it(path):
    settings, text = load_settings(path), path.read_text()
    for leaf in leaves(*TABLES):
        line = re.search(rf"^{leaf.name} = .*$", text, re.MULTILINE)[0]
        said = re.search(r"# default: ((\"[^\"]*\"|\S)+?)(\. |$)", line)
        if value_of(settings, leaf) == leaf.default:
            assert not said, line
        else:
            default = tomllib.loads(f"value = {said[1]}")["value"]
            expected = ("" if leaf.type is str else 0) if leaf.default is None else leaf.default
            assert default == expected, line


def test_the_official_prompt_and_its_answer_fit_the_context():
    settings = load_settings(next(path for path in CONFIGS if path.stem == "cogvlm2-caption"))
    assert settings.prompts == {"default": "Please describe this video in detail."}
    prompt_tokens = 1 + 67 * settings.sampling.max_frames + 11
    assert prompt_tokens == 1620
    assert prompt_tokens + settings.generation.max_new_tokens <= 2048
