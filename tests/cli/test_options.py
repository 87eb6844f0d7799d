from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cogcache.cli import main
from cogcache.cli.cache_option import cache_option
from cogcache.cli.options import settings_options
from cogcache.errors import ConfigError
from cogcache.settings.settings import TABLES, Settings, leaves, load_settings
from cogcache.stages.both import StageRequest

seen: list[tuple[Path, Settings]] = []


@click.command()
@cache_option
@settings_options(*TABLES, prompts=True)
def command(cache: Path, settings: Settings) -> None:
    seen.append((cache, settings))


def settings_of(*arguments: str) -> Settings:
    result = CliRunner().invoke(command, ["--cache", "x", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen.pop()[1]


def test_no_option_gives_the_defaults():
    assert settings_of() == Settings(model="tiny")


def test_the_cache_is_a_path():
    CliRunner().invoke(command, ["--cache", "some/where"], catch_exceptions=False)
    assert seen.pop()[0] == Path("some/where")


@pytest.mark.parametrize("leaf", leaves(*TABLES), ids=lambda leaf: leaf.name)
def test_every_setting_is_an_option_with_its_description(leaf):
    help_text = " ".join(CliRunner().invoke(command, ["--help"], terminal_width=200).output.split())
    assert leaf.option in help_text
    assert leaf.description.replace("`", "").removesuffix(".") in help_text


def test_only_given_options_override_the_file(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text("[sampling]\nmax_frames = 12\n[language]\ndouble_quant = false")
    settings = settings_of("--config", str(file), "--strategy", "uniform")
    assert settings.sampling.max_frames == 12
    assert settings.sampling.strategy == "uniform"
    assert not settings.language.double_quant


def test_an_option_can_take_back_what_the_file_says(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text("[clips]\nsegment_s = 60\n[language]\ndouble_quant = false")
    settings = settings_of("--config", str(file), "--segment", "0", "--double-quant")
    assert settings.clips.segment_s is None
    assert settings.language.double_quant


def test_segment_is_short_for_segment_s():
    assert settings_of("--segment", "60") == settings_of("--segment-s", "60")


def test_a_wrong_choice_is_misuse_and_lists_the_choices():
    result = CliRunner().invoke(command, ["--cache", "x", "--quantization", "nf8"])
    assert result.exit_code == 2
    assert "'nf4', 'fp4', 'int8', 'int4', 'fp8', 'none'" in result.output


def test_prompts_replace_those_of_the_config_file(tmp_path):
    config, prompts = tmp_path / "my.toml", tmp_path / "prompts.toml"
    config.write_text("[prompts]\na = 'What?'")
    prompts.write_text("[prompts]\nb = 'Where?'")
    assert settings_of("--config", str(config)).prompts == {"a": "What?"}
    settings = settings_of(
        "--config", str(config), "--prompts", str(prompts), "--prompt", "c=When?"
    )
    assert settings.prompts == {"b": "Where?", "c": "When?"}


SETS = "[prompts]\na = 'What?'\n[prompt_sets.x]\nb = 'Where?'\n[prompt_sets.y]\nc = 'When?'"


def test_sets_of_prompts_replace_the_prompts_and_join(tmp_path):
    config = tmp_path / "my.toml"
    config.write_text(SETS)
    for option in ("--config", "--prompts"):
        given = (option, str(config))
        assert settings_of(*given).prompts == {"a": "What?"}
        assert settings_of(*given, "--prompt-set", "y").prompts == {"c": "When?"}
        both = settings_of(*given, "--prompt-set", "x", "--prompt-set", "y", "--prompt", "d=Who?")
        assert both.prompts == {"b": "Where?", "c": "When?", "d": "Who?"}


def test_a_prompt_on_the_command_line_may_need_one_of_a_set_or_file(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text(SETS)
    chain = "--prompt=d=Shorter: {caption.b}"
    assert list(settings_of(f"--config={file}", "--prompt-set=x", chain).prompts) == ["b", "d"]
    chain = "--prompt=d=Shorter: {caption.a}"
    assert list(settings_of(f"--prompts={file}", chain).prompts) == ["a", "d"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--prompt-set", "z"], "there is no set of prompts 'z'; there is x, y"),
        (["--prompts", "sets.toml"], "sets.toml holds only sets of prompts"),
    ],
)
def test_a_set_that_is_missing_or_not_chosen_is_told(tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text(SETS)
    Path("sets.toml").write_text("[prompt_sets.x]\nb = 'Where?'")
    with pytest.raises(ConfigError, match=problem):
        settings_of("--config", "my.toml", *arguments)


def test_two_sets_with_different_prompts_of_one_name_are_refused(toml):
    path = toml("[prompt_sets.x]\nb = 'Where?'\n[prompt_sets.y]\nb = 'When?'")
    with pytest.raises(ConfigError, match="two of the sets x, y have a prompt 'b'"):
        settings_of("--config", str(path), "--prompt-set", "x", "--prompt-set", "y")


def test_stop_texts_can_be_repeated_and_taken_back(toml):
    path = str(toml("[generation]\nstop = ['a', 'b']"))
    assert settings_of("--config", path).generation.stop == ("a", "b")
    assert settings_of("--config", path, "--stop", "x", "--stop", "y").generation.stop == ("x", "y")
    assert settings_of("--config", path, "--stop", "").generation.stop == ()
    assert settings_of("--config", str(toml("[generation]\nstop = 'a'"))).generation.stop == ("a",)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"stop": ["a", "= b"]},
        {"segment_s": 0.1 + 0.2, "revision": "-x", "double_quant": False, "max_frames": 3},
        {"do_sample": True, "temperature": 1e-3, "seed": 2**62, "model": "a folder/with = signs"},
        {"prompts": {"a": "What is 1 = 1?", "b": "--prompt"}},
    ],
)
def test_a_request_gives_another_process_the_same_settings(overrides):
    settings = load_settings(None, overrides)
    asked = StageRequest(
        stage="caption",
        cache=Path("a cache"),
        settings=settings,
        videos=("--odd", "b"),
        spans=((0.5, None), (1.0, 0.1 + 1)),
        catalog_path=Path("c.sqlite"),
    )
    assert StageRequest.from_json(asked.to_json()) == asked


def test_a_prompt_that_cannot_be_used_is_blamed_on_the_options_that_give_prompts():
    with pytest.raises(ConfigError, match=r"^--prompt or --prompts: prompt 'a'"):
        settings_of("--prompt", "a={video.nosuch}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "--cache", ""],
        ["ls", "--cache="],
        ["export", "", "--cache", "c"],
        ["search", "a", "--cache", "c", "--in", ""],
        ["gallery", "", "--cache", "c"],
        ["merge", "", "--into", "c"],
        ["import", "", "--cache", "c", "--set", "a"],
    ],
)
def test_an_empty_path_is_refused_and_is_not_the_working_folder(arguments):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "it is empty" in done.output
