"""Prompts with variables and chains, before any model is asked."""

from __future__ import annotations

import pytest

from cogcache.errors import ConfigError
from cogcache.settings.settings import load_settings
from cogcache.settings.templates import captions_in, fill, levels, variables


def test_variables_are_replaced_and_doubled_braces_are_braces():
    values = {"name": "holiday", "start": "10", "caption.short": "A dog."}
    text = 'Of {name} from {start} s: {caption.short} Answer as {{"dog": true}}, {{name}}.'
    assert fill(text, values) == ('Of holiday from 10 s: A dog. Answer as {"dog": true}, {name}.')


def test_what_is_put_in_is_not_looked_at_again():
    assert fill("{caption.a}", {"caption.a": "{name} {{x}}"}) == "{name} {{x}}"


def test_a_variable_may_stand_within_braces():
    assert fill("{{{name}}}", {"name": "x"}) == "{x}"


def test_a_prompt_without_braces_names_nothing():
    assert variables("What is it?") == ()
    assert captions_in("{name} {caption.a} {caption.b-2} {caption.a}") == ["a", "b-2"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{nam}", r"prompt 'a': {nam} is no variable: did you mean {name}\? known are {name}"),
        ('Say {"a": 1}', r"is no variable: known .* write {{\"a\": 1}} for the text"),
        ("1 } 2", r"prompt 'a': a single } has no meaning: write }}"),
        ("{", "a single { has no meaning: write {{"),
        ("{}", "{} is no variable"),
        ("{caption.a}", "in a circle: a → a"),
    ],
)
def test_what_cannot_be_filled_in_is_refused_when_settings_are_read(toml, text, problem):
    with pytest.raises(ConfigError, match=problem):
        load_settings(toml(f"[prompts]\na = '{text}'"))
    with pytest.raises(ConfigError, match=problem):
        load_settings(toml(f"[prompt_sets.x]\na = '{text}'"))


def test_prompts_that_wait_for_one_another_are_refused_with_their_circle():
    prompts = {"a": "{caption.c}", "b": "{caption.a}", "c": "{caption.b}", "d": "What?"}
    with pytest.raises(
        ConfigError, match=r"in a circle: (a → c → b → a|c → b → a → c|b → a → c → b)"
    ):
        load_settings(None, {"prompts": prompts})


def test_prompts_come_in_levels_each_after_what_it_needs():
    prompts = {
        "third": "{caption.second} {caption.first}",
        "first": "What?",
        "second": "{caption.first}",
        "alone": "{name}",
    }
    assert levels(prompts) == [["first", "alone"], ["second"], ["third"]]
