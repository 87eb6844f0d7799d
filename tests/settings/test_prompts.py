from __future__ import annotations

import pytest

from cogcache.errors import ConfigError
from cogcache.settings.prompts import parse_prompts


def test_prompts_are_named_or_take_their_name_from_their_text():
    prompts = parse_prompts(["colour=Which colour is it?", "What moves?"])
    assert prompts == {"colour": "Which colour is it?", "what-moves": "What moves?"}


def test_an_equals_sign_inside_a_prompt_makes_no_name():
    assert parse_prompts(["What is 1+1=?"]) == {"what-is-1-1": "What is 1+1=?"}


def test_a_long_prompt_gets_a_short_name_of_whole_words():
    assert list(parse_prompts(["Please describe this video in detail, please."])) == [
        "please-describe-this-video-in-detail"
    ]


def test_prompts_in_any_script_get_a_name():
    assert list(parse_prompts(["¿Qué se mueve?", "?!"])) == ["qué-se-mueve", "prompt"]


@pytest.mark.parametrize("text", ["", " ", "name=", "name= "])
def test_an_empty_prompt_is_refused(text):
    with pytest.raises(ConfigError, match="holds no text"):
        parse_prompts([text])


def test_two_prompts_of_one_name_are_refused(toml):
    with pytest.raises(ConfigError, match="two prompts are named 'a'"):
        parse_prompts(["a=What?"], toml("[prompts]\na = 'Where?'"))


def test_the_same_prompt_twice_counts_once():
    assert parse_prompts(["What?", "What?"]) == {"what": "What?"}


def test_prompts_come_from_a_file_first(toml):
    prompts = parse_prompts(["b=Where?"], toml("[prompts]\na = 'What?'"))
    assert list(prompts) == ["a", "b"]


def test_no_prompt_given_is_no_prompt():
    assert parse_prompts([]) == {}


@pytest.mark.parametrize("text", ["", "a = 'What?'", "[prompts]\na = 'What?'\n[sampling]"])
def test_a_prompts_file_holds_one_table(toml, text):
    with pytest.raises(ConfigError, match=r"my\.toml should hold one table \[prompts\]"):
        parse_prompts([], toml(text))


def test_a_wrong_prompt_in_a_file_is_told_by_its_name(toml):
    with pytest.raises(ConfigError, match=r"my\.toml: prompt 'a' must be text in quotes, not 3"):
        parse_prompts([], toml("[prompts]\na = 3"))
