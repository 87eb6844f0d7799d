"""Captions that follow a JSON schema, token by token, whatever the model would like to say."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
import zoo
from scenes import catalog_of, settings, write_scene

import cogcache.generation
from cogcache.catalog.rows import CaptionRow
from cogcache.errors import ConfigError
from cogcache.settings.settings import load_settings
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.system.distribution import extra_hint

SCHEMA = {
    "type": "object",
    "properties": {
        "motion": {"enum": ["left", "right"]},
        "colors": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "sure": {"type": "boolean"},
    },
    "required": ["motion", "colors", "count", "sure"],
    "additionalProperties": False,
}
PROMPTS = {"color": "What color is the shape?", "count": "How many shapes are there?"}


@pytest.fixture(scope="module", params=["tiny", "byte-level", "sentencepiece"])
def extracted(request, tmp_path_factory) -> tuple[str, Path]:
    """A model and a cache of two clips; only tiny was ever trained."""
    folder = tmp_path_factory.mktemp(request.param)
    model = "tiny"
    if request.param == "byte-level":
        model = str(zoo.QWEN2_VL.write(folder / "model"))
    elif request.param == "sentencepiece":
        model = str(zoo.LLAVA_NEXT_VIDEO.write(folder / "model", sentencepiece=True))
    (folder / "videos").mkdir()
    for seed in range(2):
        write_scene(folder / "videos" / f"{seed}.mp4", seed, num_frames=20)
    given = settings(model=model, vision_dtype="float32")
    assert extract([folder / "videos"], folder / "cache", given).counts.done == 2
    return model, folder / "cache"


@pytest.fixture
def schema(tmp_path) -> str:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA, indent=2))
    return str(path)


def asked(model: str, **changes: object):
    given = {"model": model, "vision_dtype": "float32", "compute_dtype": "float32"}
    given |= {"quantization": "none", "max_new_tokens": 300, "prompts": PROMPTS}
    return settings(**{**given, **changes})


def made(cache: Path, tmp_path: Path, *, of: str = "a", **changes: object) -> list[CaptionRow]:
    own = Path(shutil.copytree(cache, tmp_path / of))
    caption(own, asked(**changes))
    with catalog_of(own) as catalog:
        return catalog.captions.rows()


def test_every_caption_follows_the_schema(extracted, schema, tmp_path):
    model, cache = extracted
    drawing = {"do_sample": True, "temperature": 1.5, "top_k": 0, "n": 3}
    rows = made(cache, tmp_path, model=model, json_schema=schema, **drawing)
    assert len(rows) == 12
    for row in rows:
        jsonschema.validate(json.loads(row["caption"]), SCHEMA)
        assert row["flags"] == []
    assert len({row["caption"] for row in rows}) > 6


def test_without_the_schema_none_would(extracted, tmp_path):
    model, cache = extracted
    for row in made(cache, tmp_path, model=model, max_new_tokens=40, retry=False):
        with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
            json.loads(row["caption"])


def test_a_caption_does_not_depend_on_its_batch_nor_on_whose_loop_it_is(
    extracted, schema, tmp_path, monkeypatch
):
    model, cache = extracted
    given = {"model": model, "json_schema": schema}
    together = made(cache, tmp_path, of="together", **given)
    alone = made(cache, tmp_path, of="alone", clips_per_batch=1, **given)
    monkeypatch.setattr("cogcache.generation.decoder.can_decode", lambda model: False)
    transformers = made(cache, tmp_path, of="transformers", **given)
    texts = [sorted(row["caption"] for row in rows) for rows in (together, alone, transformers)]
    assert texts[0] == texts[1] == texts[2]


def test_beams_follow_it_too(extracted, schema, tmp_path):
    model, cache = extracted
    for row in made(cache, tmp_path, model=model, json_schema=schema, num_beams=2):
        jsonschema.validate(json.loads(row["caption"]), SCHEMA)


def test_json_that_is_cut_off_is_flagged(extracted, schema, tmp_path):
    model, cache = extracted
    rows = made(cache, tmp_path, model=model, json_schema=schema, max_new_tokens=3, retry=False)
    assert all({"no_end", "invalid_json"} <= {*row["flags"]} for row in rows)


# ---- keys ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_extracted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-cache")
    write_scene(folder / "a.mp4", 0)
    extract([folder / "a.mp4"], folder / "cache", settings())
    return folder / "cache"


@pytest.fixture
def tiny_cache(tiny_extracted, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_extracted, tmp_path / "cache"))


def test_the_schema_is_a_part_of_the_key_and_its_blanks_are_not(tiny_cache, schema, tmp_path):
    given = {"quantization": "none", "prompts": PROMPTS}
    first = caption(tiny_cache, settings(json_schema=schema, **given))
    assert first.counts.done == 2
    compact = json.dumps(SCHEMA, separators=(",", ":"))
    again = caption(tiny_cache, settings(json_schema=compact, **given))
    assert (again.counts.done, again.counts.cached) == (0, 2)
    other = SCHEMA | {"properties": dict(reversed(SCHEMA["properties"].items()))}
    assert caption(tiny_cache, settings(json_schema=json.dumps(other), **given)).counts.done == 2
    assert caption(tiny_cache, settings(**given)).counts.done == 2
    with catalog_of(tiny_cache) as catalog:
        held = {row["settings"]["generation"].get("json_schema") for row in catalog.captions.rows()}
    assert len(held) == 3


# ---- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[1]", "is no JSON schema: it should hold an object"),
    ],
)
def test_a_file_that_holds_no_schema_is_told_when_settings_are_read(tmp_path, text, problem):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"a\.json {problem}"):
        load_settings(None, {"json_schema": str(tmp_path / "a.json")})
    with pytest.raises(ConfigError, match=r"b\.json cannot be read: No such file"):
        load_settings(None, {"json_schema": str(tmp_path / "b.json")})


def test_stop_texts_beside_a_schema_are_refused(schema):
    with pytest.raises(ConfigError, match="stop texts would cut JSON off"):
        load_settings(None, {"json_schema": schema, "stop": ["}"]})


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ('{"type": "objec"}', "is no JSON schema: at type, 'objec' is not valid"),
        ('{"type": "object", "unevaluatedProperties": false}', "cannot be held: Unimplemented key"),
        ('{"$ref": "https://example.org/schema.json"}', "cannot be held: "),
        ('{"type": "string", "pattern": "(?<=a)b"}', "cannot be held: "),
    ],
)
def test_a_schema_that_cannot_be_held_ends_the_run_before_anything_is_loaded(
    tiny_cache, monkeypatch, schema, problem
):
    monkeypatch.setattr(
        "cogcache.stages.captioning.language_half.LanguageHalf.load",
        lambda *_: pytest.fail("loaded"),
    )
    with pytest.raises(ConfigError, match=problem):
        caption(tiny_cache, settings(json_schema=schema))


@pytest.mark.parametrize("package", ["llguidance", "jsonschema"])
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    tiny_cache, monkeypatch, package
):
    monkeypatch.delitem(sys.modules, "cogcache.generation.json_grammar", raising=False)
    vars(cogcache.generation).pop("Grammar", None)  # a front keeps what it has handed on
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"--json-schema needs {package}") as caught:
        caption(tiny_cache, settings(json_schema='{"type": "object"}'))
    assert caught.value.hint == extra_hint("structured")


def test_a_model_with_more_logits_than_tokens_gives_none_of_the_rest():
    from cogcache.generation.json_grammar import Grammar
    from cogcache.models.checkpoints.checkpoint import Checkpoint
    from cogcache.models.registry import family_of

    grammar = Grammar('{"const": 1}', family_of(Checkpoint.open("tiny")))
    scores = grammar.processor(0)(torch.zeros((1, 0), dtype=torch.long), torch.zeros((1, 9999)))
    assert 0 < torch.isfinite(scores).sum() < 10
    assert not torch.isfinite(scores[:, 464:]).any()
