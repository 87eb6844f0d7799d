from __future__ import annotations

from cogcache.guards import flags_of


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
