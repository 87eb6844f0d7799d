"""Sealed files with features of no such model: each clip is a failure with a reason, no bug."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from click.testing import CliRunner
from contracts import clip

from cogcache.catalog.catalog import Catalog
from cogcache.cli import main
from cogcache.errors import CacheError, FeaturesError
from cogcache.models import check_features, family_of, features_of
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.derived.times import FrameTimes
from cogcache.models.family import ClipTensors
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import Settings, load_settings
from cogcache.settings.stage_two import Language
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.store import FeatureStore
from cogcache.training.examples import Chosen, lay_out

STRANGE = {
    "empty": (lambda good: {"features": good[:0]}, "is empty"),
    "narrow": (lambda good: {"features": good[..., :64].contiguous()}, "rows have 128 numbers"),
    "flat": (lambda good: {"features": good.flatten()}, "is of shape"),
    "scalar": (lambda _: {"features": torch.tensor(1.0)}, "is of shape []"),
    "integers": (lambda good: {"features": good.long()}, "of type int64"),
    "renamed": (lambda good: {"other": good}, "no prompt can be laid out"),
    "endless": (lambda _: {"features": torch.zeros(9999, 6, 128)}, "knows 2,048 positions"),
}


def settings(**changes: object) -> Settings:
    given = {"quantization": "none", "prompts": {"q": "What is it?"}, "decode_workers": 1}
    return load_settings(None, {**given, **changes})


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache of one clip of its own, and one of a stranger's for each kind."""
    folder = tmp_path_factory.mktemp("strange")
    write_clip(draw_scene(np.random.default_rng(0)), folder / "sound.mp4")
    extract([folder / "sound.mp4"], folder / "cache", settings())
    store = FeatureStore.open(folder / "cache")
    [key] = [*store]
    sound = store.read(key)
    odd = {name: (change(sound.tensors["features"]), {}) for name, (change, _) in STRANGE.items()}
    odd["without texts"] = (sound.tensors, {"texts": ["a"]})
    for number, (name, (tensors, other)) in enumerate(odd.items()):
        told = {"video": f"/{name}.mp4", "video_digest": f"{number:064x}", **other}
        store.write(f"{number:02x}" * 32, tensors, {**sound.attributes, **told}, sound.thumbnail)
    done = CliRunner().invoke(main, ["rebuild", "--cache", str(folder / "cache")])
    assert done.exit_code == 0, done.output
    return folder / "cache"


def test_each_is_a_failure_that_says_why_and_the_others_are_captioned(cache):
    report = caption(cache, settings())
    assert (report.counts.done, report.counts.failed) == (1, len(STRANGE) + 1)
    with Catalog(cache / "catalog.sqlite") as catalog:
        failed = {Path(row["video"]).stem: row for row in catalog.failures.rows()}
    assert {row["reason"] for row in failed.values()} == {"features_corrupt"}
    assert "`texts`" in failed["without texts"]["message"]
    assert all(told in failed[name]["message"] for name, (_, told) in STRANGE.items())


@pytest.mark.parametrize("number", range(len(STRANGE)), ids=[*STRANGE])
def test_training_does_not_begin_with_them_and_names_the_clip(cache, number):
    family, store = family_of(Checkpoint.open("tiny")), FeatureStore.open(cache)
    chosen = Chosen("a", f"{number:02x}" * 32, "b", "clip-7", "q", "What is it?", "A ball.")
    with pytest.raises(CacheError, match="clip-7, prompt 'q': its features"):
        lay_out([chosen], family, store, "chat", None)


def test_pooled_features_have_the_width_of_the_encoder(cache):
    family = family_of(Checkpoint.open("tiny"))
    width = family.checkpoint.config["vision_config"]["hidden_size"]
    sound = torch.zeros(2, 4, width)
    with pytest.raises(FeaturesError, match="rows have 128 numbers"):
        check_features(family, features_of({"features": sound}, {"texts": {}}), "chat")
    check_features(family.at("pooled"), features_of({"features": sound}, {"texts": {}}), "chat")


GRID = "extra.video_grid_thw"
GRIDS = {
    "endless in time": [10**9, 4, 4],
    "wide": [1, 10**9, 10**9],
    "beyond 64 bits": [2**62, 4, 4],
    "negative": [-7, -8, -14],
    "zero": [0, 0, 0],
    "of two numbers": [4, 4],
    "of two clips": [[4, 4, 4], [4, 4, 4]],
    "empty": [],
    "no number": [float("nan")] * 3,
    "infinite": [float("inf")] * 3,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("animal", [zoo.QWEN2_VL, zoo.QWEN3_VL], ids=lambda a: a.name)
def test_a_grid_that_is_not_that_of_the_features_is_refused_before_it_takes_memory(
    animal, tmp_path
):
    family = family_of(Checkpoint.open(str(animal.write(tmp_path))))
    vision = load_half(WholeModel.of(family.checkpoint), "vision", dtype=torch.float32).model
    frames = clip(4, (32, 48), 1)
    [sound] = family.encode(vision, [family.prepare(frames, torch.float32)], 48)
    facts, layout = asdict(FrameTimes.of_clip(frames)), family.layout(Language())
    check_features(family, replace(sound, facts=facts), layout)
    without = {name: tensor for name, tensor in sound.tensors.items() if name != GRID}
    odd = {name: {**without, GRID: torch.tensor(grid)} for name, grid in GRIDS.items()}
    for tensors in [without, *odd.values()]:
        with pytest.raises(FeaturesError, match=r"fit the features|not those of a"):
            check_features(family, ClipTensors(tensors, sound.texts, facts), layout)
