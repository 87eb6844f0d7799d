from __future__ import annotations

import re
from pydoc_data.topics import topics

import pytest

from cogcache.generation.flags import changes_for, flags_of
from cogcache.settings import Generation, Limits


def test_a_good_caption_has_no_flag():
    assert flags_of("A red circle.", [5, 6, 7, 8], ended=True) == ()


def test_no_text_is_empty():
    assert flags_of("", [], ended=True) == ("empty",)


def test_a_caption_cut_off_by_the_limit_has_no_end():
    assert flags_of("A red", [5, 6], ended=False) == ("no_end",)


def test_a_phrase_said_three_times_at_the_end_is_looping():
    assert flags_of("…", [9, 1, 2, 3, 1, 2, 3, 1, 2, 3], ended=False) == ("no_end", "looping")


def test_one_token_for_ever_is_looping():
    assert "looping" in flags_of("ha ha", [4] * 20, ended=False)


def test_a_phrase_said_twice_is_not_looping():
    assert flags_of("…", [1, 2, 3, 1, 2, 3], ended=True) == ()


def test_a_loop_that_was_cut_off_in_the_middle_of_its_phrase_is_looping():
    assert "looping" in flags_of("…", [9, 1, 2, 3, 4] + [5, 6, 7] * 3 + [5, 6], ended=False)


def test_a_loop_of_a_long_sentence_is_looping():
    assert "looping" in flags_of("…", [9, 8, *range(10, 60)] + [*range(100, 150)] * 4, ended=False)


def test_a_short_list_of_one_word_is_not_looping():
    assert flags_of("no, no, no", [4, 4, 4, 4], ended=True) == ()
    assert flags_of("…", [1, 2, 1, 2, 1, 2, 7, 8, 9], ended=True) == ()


@pytest.mark.parametrize("before", [0, 1, 400])
@pytest.mark.parametrize("after", [0, 1, 400])
def test_a_loop_is_found_wherever_it_stands(before, after):
    loop = [1, 2, 3] * 3
    tokens = [*range(10, 10 + before), *loop, *range(500, 500 + after)]
    assert "looping" in flags_of("…", tokens, ended=True)
    assert flags_of("…", [*range(10, 10 + before), *loop[:6], *range(500, 500 + after)],
                    ended=True) == ()  # fmt: skip


def test_one_word_four_times_is_looping_whatever_stands_between():
    assert "looping" in flags_of("A very, very, Very very red ball.", [1, 2, 3], ended=True)
    assert flags_of("A very, very, very red ball in 1 1 1 1.", [1, 2, 3], ended=True) == ()


def test_how_often_makes_a_loop_is_set():
    thrice = [1, 2, 3] * 3
    assert flags_of("…", thrice, ended=True, limits=Limits(loop_phrases=4)) == ()
    assert "looping" in flags_of("no no", [1], ended=True, limits=Limits(loop_words=2))


def test_of_what_people_wrote_at_most_one_sentence_in_a_hundred_is_called_a_loop():
    """The sentences are those of the Python language reference, as pydoc has it."""
    prose = re.sub(r"\s+", " ", " ".join(topics.values()))
    split = re.split(r"(?<=[.!?]) (?=[A-Z])", prose)
    # Prose alone: no headings, no grammar, no programs.
    sentences = [
        each
        for each in split
        if "--" not in each and re.fullmatch(r"[A-Z][A-Za-z ,;:'\"()-]{40,}\.", each)
    ]
    assert len(sentences) > 500
    known: dict[str, int] = {}
    wrong = 0
    for sentence in sentences:
        words = re.findall(r"\w+|[^\w\s]", sentence)
        tokens = [known.setdefault(word, len(known)) for word in words]
        wrong += "looping" in flags_of(sentence, tokens, ended=True)
    assert wrong / len(sentences) <= 0.01


def test_a_caption_cut_off_by_the_context_says_so():
    assert flags_of("A red", [5, 6], ended=False, over_context=True) == ("no_end", "over_context")


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ((), {}),
        (("empty",), {"do_sample": True, "seed": 1}),
        (("no_end",), {"max_new_tokens": 512}),
        (("no_end", "looping"), {"repetition_penalty": 1.15}),
        (("no_end", "over_context"), {}),
    ],
)
def test_each_fault_names_the_settings_that_another_try_changes(flags, changes):
    assert changes_for(flags, Generation()) == changes
    Generation.model_validate({**Generation().model_dump(), **changes})
