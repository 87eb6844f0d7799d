"""Caption, look, correct, train, caption again: the loop as one story."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.selection import Selection
from cogcache.review.replacing import Rewriting
from cogcache.review.reviews import Reviews
from cogcache.selftest.shapes import QUESTIONS, draw_scene, write_clip
from cogcache.settings.settings import load_settings
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.stages.score import ScoreRequest, score
from cogcache.stages.train import train

PROMPT = QUESTIONS["detail"][0]
PLACE = r" on a \w+ background\."


def settings(**more):
    given = {"model": "tiny", "device": "cpu", "quantization": "none", "decode_workers": 1}
    return load_settings(None, {**given, "prompts": {"detail": PROMPT}, **more})


def clips(folder: Path, number: int, seed: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{n:03}.mp4" for n in range(number)]
    for n, path in enumerate(paths):
        write_clip(draw_scene(np.random.default_rng(seed + n), 32), path)
    return paths


def said(cache, folder, *, adapted):
    """Return the captions of a folder's clips, by the bundled model or by that with an adapter."""
    with Catalog(cache / "catalog.sqlite") as catalog:
        rows = catalog.captions.rows()
    return {
        Path(row["video"]).name: row["caption"]
        for row in rows
        if Path(row["video"]).parent == folder and (row["model"] != "tiny") == adapted
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reviewed", "unseen", "steps", "share"), [(24, 5, 30, 0.8), (200, 40, 100, 0.95)]
)
def test_captions_reviewed_into_another_style_are_what_the_trained_model_writes(
    tmp_path, record_property, reviewed, unseen, steps, share
):
    cache = tmp_path / "cache"
    clips(tmp_path / "seen", reviewed, 1000)
    extract([str(tmp_path / "seen")], cache, settings())
    caption(cache, settings())
    with Catalog(cache / "catalog.sqlite") as catalog:
        reviews = Reviews(catalog, author="reviewer 1")
        changes = Rewriting(old=PLACE, new=".", regex=True).preview(reviews.chosen())
        texts = {each.reviewed.key: each.after for each in changes}
        assert reviews.rewrite(texts, [each.reviewed for each in changes]).changed == reviewed
    learning = settings(
        max_steps=steps,
        eval_share=0.0,
        learning_rate=2e-3,
        accumulate=1,
        samples=0,
        save_every=steps,
    )
    out = tmp_path / "adapter"
    train(cache, out, learning, Selection(prefer=("reviewed", "tiny")))
    clips(tmp_path / "unseen", unseen, 5000)
    extract([str(tmp_path / "unseen")], cache, settings())
    for adapter in (None, str(out)):
        caption(cache, settings(adapter=adapter), videos=[str(tmp_path / "unseen")])
    before = said(cache, tmp_path / "unseen", adapted=False)
    after = said(cache, tmp_path / "unseen", adapted=True)
    in_style = sum("background" not in text for text in after.values())
    assert in_style >= share * unseen, after
    assert all("background" in text for text in before.values())
    request = ScoreRequest(("grounding",), Selection(folders=(tmp_path / "unseen",)), others=1)
    score(cache, settings(), request)
    with Catalog(cache / "catalog.sqlite") as catalog:
        models = {row["caption_key"]: row["model"] for row in catalog.captions.rows()}
        rows = catalog.scores.rows(names=["grounding"])
    scores: dict[str, list[float]] = {name: [] for name in after_models(cache)}
    for row in rows:
        scores[models[row["caption_key"]]].append(row["score"])
    assert [len(each) for each in scores.values()] == [unseen, unseen]
    side_by_side = {name: round(sum(each) / unseen, 3) for name, each in scores.items()}
    record_property("in style", in_style)
    record_property("mean grounding", side_by_side)


def after_models(cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        rows = catalog.captions.rows()
    return {row["model"] for row in rows if "unseen" in row["video"]}
