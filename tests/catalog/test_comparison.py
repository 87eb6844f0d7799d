"""Two sets of captions beside each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from caches import caption_of, make_cache
from click.testing import CliRunner

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.comparison import changes, compare, marked, parse_selector
from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.errors import ConfigError


@pytest.fixture
def cache(tmp_path) -> Path:
    """Three clips, each with a caption "What is seen in …" for the prompt "default"."""
    make_cache(tmp_path)
    return tmp_path / "cache"


def add(cache: Path, number: int, text: str, **changes: object) -> None:
    """Add a caption of a clip; its key is made of all that tells it from others."""
    with Catalog(cache / "catalog.sqlite") as catalog:
        row = {**caption_of(catalog.clips.rows()[number]), "caption": text, **changes}
        row["caption_key"] = json.dumps([number, text, sorted(map(str, changes.items()))])
        catalog.captions.add([row])


def diff(cache: Path, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["diff", *arguments, "--cache", str(cache)])
    assert result.exit_code == 0, result.output
    return result.output


def found(cache: Path, a: str, b: str) -> dict[str, tuple[str, str | None, str | None]]:
    """Return status and both texts by the video's number."""
    sides = [parse_selector(text, Selection()) for text in (a, b)]
    pairs = compare(cache / "catalog.sqlite", *sides).pairs
    return {Path(pair.place.video).stem: (pair.status, pair.a, pair.b) for pair in pairs}


def test_clips_are_held_against_each_other_by_prompt(cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        first = catalog.captions.rows()[0]["caption"]
    add(cache, 0, first, prompt_name="other")
    add(cache, 1, "Something else.", prompt_name="other")
    pairs = found(cache, "default", "prompt=other")
    assert {number: pair[0] for number, pair in pairs.items()} == {
        "0": "same", "1": "different", "2": "only_a",
    }  # fmt: skip
    assert pairs["1"][2] == "Something else."
    assert found(cache, "other", "default")["2"][0] == "only_b"


def test_sets_of_other_models_and_runs_are_paired_prompt_by_prompt(cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        runs = [catalog.runs.start("caption", "made-up", {}) for _ in range(2)]
    for run, text in zip(runs, ("Red.", "Blue."), strict=True):
        add(cache, 0, text, prompt_name="color", run=run, quantization=f"q{run}")
        add(cache, 0, "Round.", prompt_name="shape", run=run, quantization=f"q{run}")
    for key in ("run=", "quantization=q"):
        sides = [parse_selector(f"{key}{run}", Selection()) for run in runs]
        pairs = compare(cache / "catalog.sqlite", *sides).pairs
        assert {(p.place.prompt_name, p.status) for p in pairs} == {
            ("color", "different"), ("shape", "same"),
        }  # fmt: skip
    one = parse_selector(f"prompt=color,run={runs[0]}", Selection())
    other = parse_selector(f"run={runs[1]}", Selection())
    [pair] = compare(cache / "catalog.sqlite", one, other).pairs
    assert (pair.place.prompt_name, pair.a, pair.b) == ("color", "Red.", "Blue.")


def test_draws_are_paired_and_of_two_captions_the_newer_counts(cache):
    for name in ("a", "b"):
        for draw in range(2):
            drawn = {"settings": {"generation": {"draw": draw}}, "prompt_name": name}
            add(cache, 0, f"{draw}", **drawn)
    add(cache, 0, "newer", prompt_name="b", settings={"generation": {"draw": 1}}, num_tokens=8)
    sides = [parse_selector(text, Selection()) for text in ("a", "b")]
    comparison = compare(cache / "catalog.sqlite", *sides)
    assert [(p.place.draw, p.status, p.b) for p in comparison.pairs] == [
        (0, "same", "0"), (1, "different", "newer"),
    ]  # fmt: skip
    assert comparison.summary() == (
        "1 different (0% of their words the same), 1 same, 0 only in A, 0 only in B; "
        "1 older captions left out"
    )


def test_words_that_only_one_side_says_are_marked():
    assert marked("Two blue circles move.", "Three blue circles move slowly.") == (
        "[-Two-] blue circles [-move.-]",
        "{+Three+} blue circles {+move slowly.+}",
    )
    assert marked("a b", "x a  b") == ("a b", "{+x+} a  b")


def test_letters_of_scripts_without_blanks_are_told_apart_one_by_one():
    assert marked("两个蓝色圆", "两个红色圆") == ("两个[-蓝-]色圆", "两个{+红+}色圆")


def test_the_stretches_of_a_difference_make_up_both_texts():
    one, other = "A dog, a cat and  a mouse.", "A cat and a dog, and a bird."
    stretches = list(changes(one, other))
    assert "".join(each.one for each in stretches) == one
    assert "".join(each.other for each in stretches) == other


def test_the_command_shows_differences_and_counts(cache):
    add(cache, 0, "What is heard", prompt_name="other")
    output = diff(cache, "default", "other")
    assert "A: default" in output
    assert "{+heard+}" in output
    assert output.splitlines()[-1].startswith("1 different (")
    assert output.splitlines()[-1].endswith("0 same, 2 only in A, 0 only in B")


def test_the_command_prints_one_json_array_with_what_is_the_same_only_if_asked(cache):
    result = CliRunner().invoke(
        main, ["diff", "default", "model=made-up", "--json", "--cache", str(cache)]
    )
    assert json.loads(result.stdout) == []
    assert result.stderr == "0 different, 3 same, 0 only in A, 0 only in B\n"
    rows = json.loads(
        CliRunner()
        .invoke(main, ["diff", "default", "default", "--all", "--json", "--cache", str(cache)])
        .stdout
    )
    assert {(row["status"], row["similarity"]) for row in rows} == {("same", 1.0)}


def test_filters_hold_for_both_sides(cache):
    folder = cache.parent
    output = diff(cache, "default", "default", "--all", "--in", str(folder / "1.mp4"))
    assert output.splitlines()[-1].startswith("0 different, 1 same")


@pytest.mark.parametrize(
    ("selector", "problem"),
    [
        ("color=red", "'color=red' selects no set of captions"),
        ("run=last", "'last' is no run's number"),
        ("prompt=", "selects no set"),
        ("prompt=a,prompt=b", "selects no set"),
    ],
)
def test_a_selector_that_means_nothing_is_told(selector, problem):
    with pytest.raises(ConfigError, match=problem):
        parse_selector(selector, Selection())


def test_commas_and_equals_signs_may_stand_in_a_name():
    chosen = parse_selector("model=a,b=c,quantization=nf4", Selection())
    assert (chosen.models, chosen.quantizations) == (("a,b=c",), ("nf4",))


def test_an_empty_set_is_told_with_those_that_there_are(cache):
    result = CliRunner().invoke(main, ["diff", "default", "none", "--cache", str(cache)])
    assert result.exit_code == 2
    assert "the set B has no captions" in result.output
    assert "prompt=default,model=made-up,quantization=none" in result.output
