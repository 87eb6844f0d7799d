"""In int4 captions are the same one by one, in batches, and behind kept video parts."""

from __future__ import annotations

import pytest
import torch

from cogcache.generation.decoder import Decoder
from cogcache.generation.prefix_files import KeptPrefixes
from cogcache.models import Checkpoint, Quantization, WholeModel, family_of, load_half
from tests.generation.test_decoding import GREEDY, requests, tokens

OF_INT4 = Quantization(kind="int4", group_size=32)
MADE_WITH = {"language_digest": "a", "quantization": {"kind": "int4"}}


@pytest.fixture(scope="module")
def int4():
    family = family_of(Checkpoint.open("tiny"))
    whole = WholeModel.of(family.checkpoint)
    return family, load_half(whole, "language", quantization=OF_INT4).model


def asked(family):
    """Ask what shares no clip with another, and what does; in the type that int4 computes in."""
    groups = requests(family, GREEDY)[:3]
    for each in (request for group in groups for request in group):
        features = each.row.features.tensors
        features["features"] = features["features"].to(torch.bfloat16)
    return groups


def decoded(int4, rows_at_once, kept=None, groups=None):
    decoder = Decoder(int4[1], int4[0], rows_at_once, kept)
    finished = {each.request.task: each for each in decoder.run(groups or asked(int4[0]))}
    if kept:
        kept.wait()
    return tokens(finished), decoder.statistics.prefixes


@pytest.fixture(scope="module")
def one_by_one(int4):
    alone = [[request] for group in asked(int4[0]) for request in group]
    return {
        task: said for group in alone for task, said in decoded(int4, 1, None, [group])[0].items()
    }


@pytest.mark.parametrize("rows", [2, 8])
def test_in_batches_each_caption_is_what_it_is_alone(int4, one_by_one, rows):
    assert decoded(int4, rows)[0] == one_by_one


def test_behind_kept_video_parts_each_caption_is_what_it_is_alone(int4, one_by_one, tmp_path):
    first, runs = decoded(int4, 4, KeptPrefixes(tmp_path, MADE_WITH))
    again, runs_again = decoded(int4, 4, KeptPrefixes(tmp_path, MADE_WITH))
    assert (runs, runs_again) == (3, 0)
    assert first == again == one_by_one
