"""Stop texts are found whatever tokens they fall into."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import zoo

from cogcache.generation.requests import Request
from cogcache.generation.stop_texts import cut, holds
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.family import Family, PromptRow
from cogcache.models.registry import family_of
from cogcache.settings.settings import load_settings
from cogcache.settings.stage_two import Generation
from cogcache.stages.captioning.stage_two import StageTwo


@pytest.fixture(scope="module")
def bytes_family(tmp_path_factory) -> Family:
    """A family in whose tokenizer every byte is a token: the most that a text can be split."""
    return family_of(Checkpoint.open(str(zoo.QWEN2_VL.write(tmp_path_factory.mktemp("bytes")))))


def request(*stops: str) -> Request:
    return Request(PromptRow({}, {}), "", 0, Generation(stop=stops))


@pytest.mark.parametrize(
    "stops",
    [("###",), ("never said", "END"), ("a stop text of many more tokens than there are words" * 2,),
     ("終わり。", "🏁🏁"), ("🏁🏁🏁🏁🏁🏁🏁🏁🏁🏁🏁🏁", "x" * 40)],
)  # fmt: skip
def test_the_token_that_completes_a_stop_text_ends_the_caption(bytes_family, stops):
    asked = request(*stops)
    tokens = bytes_family.processor.tokenizer.encode("Some words, before. " * 5 + stops[-1])
    ended = [asked.stops(bytes_family, tokens[:end]) for end in range(1, len(tokens) + 1)]
    assert ended == [False] * (len(tokens) - 1) + [True]


def test_without_stop_texts_nothing_stops(bytes_family):
    assert not request().stops(bytes_family, [1, 2, 3])


def test_the_first_stop_text_cuts_whichever_comes_first_in_the_list():
    text = "One. Two; three"
    assert (cut(text, ("; ", ". ", "!")), cut(text, ("!", "; "))) == ("One", "One. Two")
    assert not holds(text, ("!", "?"))


KEYS = (
    ({}, "25d87eea19d733a1447f9bd9b055eb6476e69e5fa985c0a5a1467ee37cb715c8"),
    ({"stop": "###"}, "f4fe7d47782b607dffbf8ad9b2cc00d2364850ee2f604df5fc2846e2a6b2d44e"),
)


@pytest.mark.parametrize(("given", "digest"), KEYS)
def test_captions_made_when_there_was_one_stop_text_at_most_keep_their_keys(given, digest):
    family = family_of(Checkpoint.open("tiny"))
    identity = SimpleNamespace(digest="d" * 64)
    made = StageTwo(load_settings(None, given), family, identity).key("a" * 64, 0, "hello")
    assert made.digest == digest
    several = load_settings(None, {"stop": ["###", "END"]})
    other = StageTwo(several, family, identity).key("a" * 64, 0, "hello")
    assert other.fields()["generation"]["stop"] == ["###", "END"]
    assert replace(other, generation=made.generation).digest == digest
