"""Which clips make up a video, how they are told to a model, and how many fit into one prompt."""

from __future__ import annotations

import pytest

from cogcache.errors import ClipError
from cogcache.stages.captioning.timeline import Line, cut_as, groups, in_order

LENGTHS = [[10] * 7, [10] * 64, [1, 50, 1, 50, 3, 3, 3], [49, 51, 2, 2, 90, 1, 1], [100, 1, 1, 1]]


def clip(start_s: float, end_s: float | None) -> dict[str, object]:
    return {"video": "v.mp4", "start_s": start_s, "end_s": end_s}


def spans(clips: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(each["start_s"], each["end_s"]) for each in clips]


def test_a_line_tells_the_videos_own_times_and_is_one_line():
    line = Line((3600.5, 3624.5), "key", "A dog\nbarks.  ")
    assert line.told(None) == "[1:00:00 - 1:00:24] A dog barks."


def test_the_last_line_ends_with_the_video():
    line = Line((24.0, None), "key", "A dog barks.")
    assert line.told(70.2) == "[0:00:24 - 0:01:10] A dog barks."
    assert line.told(None) == "[0:00:24 - end] A dog barks."


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_groups_hold_every_line_once_and_in_order(lengths):
    found = groups(lengths, 100)
    assert [place for first, stop in found for place in range(first, stop)] == [
        *range(len(lengths))
    ]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_no_group_is_longer_than_there_is_room(lengths):
    assert max(sum(lengths[first:stop]) for first, stop in groups(lengths, 100)) <= 100


def test_groups_are_of_about_one_length():
    assert [stop - first for first, stop in groups([10] * 21, 100)] == [7, 7, 7]


def test_what_fits_is_one_group():
    assert groups([50, 50], 100) == [(0, 2)]


@pytest.mark.parametrize("lengths", [[101, 1], [60, 60, 60]])
def test_lines_of_which_no_two_fit_are_refused(lengths):
    with pytest.raises(ClipError, match="cannot be summed up in 100"):
        groups(lengths, 100)


def test_the_whole_video_is_none_of_its_parts():
    clips = [clip(5.0, None), clip(0.0, None), clip(0.0, 5.0)]
    assert spans(in_order(clips)) == [(0.0, 5.0), (5.0, None)]


def test_clips_that_overlap_are_one_way_to_cut():
    assert len(in_order([clip(0.0, 6.0), clip(5.0, 11.0), clip(10.0, None)])) == 3


@pytest.mark.parametrize("other", [clip(0.0, 10.0), clip(5.0, None), clip(1.0, 4.0)])
def test_clips_within_others_come_from_another_way_to_cut(other):
    with pytest.raises(ClipError) as caught:
        in_order([clip(0.0, 5.0), clip(5.0, 10.0), clip(10.0, None), other])
    assert caught.value.reason == "several_cuttings"


def test_of_several_ways_to_cut_one_is_taken():
    clips = [clip(0.0, 10.0), clip(0.0, 5.0), clip(5.0, 10.0)]
    there, absent = cut_as(clips, [(0.0, 5.0), (5.0, 10.0), (10.0, None)])
    assert spans(there) == [(0.0, 5.0), (5.0, 10.0)]
    assert absent == [(10.0, None)]
