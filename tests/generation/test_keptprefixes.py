"""A clip's video part that was kept gives the tokens of one that is run, or is made anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cogcache.catalog.catalog import Catalog
from cogcache.errors import CacheError
from cogcache.generation.decoder import Decoder
from cogcache.generation.prefix_files import KeptPrefixes
from cogcache.generation.requests import Request
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.registry import family_of
from cogcache.planning.estimates import prefix_bytes, row_tokens
from cogcache.settings.settings import load_settings
from cogcache.stages.runs.report_lines import report_lines
from tests.generation.test_decoding import GREEDY, lab, requests, tokens
from tests.stages.test_captioning import NUM_CLIPS, extracted, made, texts

__all__ = ["extracted", "lab"]
MADE_WITH = {"language_digest": "a", "quantization": {"kind": "none"}}
OTHER_PROMPT = {"detail": "Please describe this video in detail."}
ONE_PROMPT = {"color": "What color is the shape?"}


def decode(lab, folder, groups=None, **changes):
    """Decode with a folder of prefixes; return tokens, how many were run, and the folder."""
    kept = KeptPrefixes(folder, {**MADE_WITH, **changes})
    decoder = Decoder(lab[1], lab[0], 4, kept)
    finished = {each.request.task: each for each in decoder.run(groups or requests(lab[0]))}
    kept.wait()
    return tokens(finished), decoder.statistics.prefixes, kept


def plain(lab):
    return tokens(
        {each.request.task: each for each in Decoder(*lab[::-1], 4).run(requests(lab[0]))}
    )


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/*.safetensors"))


def test_a_kept_video_part_gives_the_same_tokens_and_is_not_run_again(lab, tmp_path):
    expected = plain(lab)
    first, runs, kept = decode(lab, tmp_path)
    assert (first, runs, kept.num_written) == (expected, 5, 5)
    second, runs, kept = decode(lab, tmp_path)
    assert (second, runs, kept.num_read, kept.num_written) == (expected, 0, 5, 0)


def test_what_is_kept_are_the_bits_of_every_layer(lab, tmp_path):
    [group, *_] = requests(lab[0])
    decoder = Decoder(lab[1], lab[0], 4)
    with torch.inference_mode():
        prefix = decoder.prefixes.of(group[0])
    kept = KeptPrefixes(tmp_path, MADE_WITH)
    kept.keep("clip", "tokens", prefix)
    kept.wait()
    found = kept.read("clip", "tokens")
    for layer, other in zip(prefix.layers, found.layers, strict=True):
        assert all(map(torch.equal, layer, other))
    assert len(found.layers) == len(prefix.layers) == lab[1].config.num_hidden_layers


@pytest.mark.parametrize("changes", [{"language_digest": "b"}, {"quantization": {"kind": "nf4"}}])
def test_other_weights_find_nothing(lab, tmp_path, changes):
    decode(lab, tmp_path)
    _, runs, _ = decode(lab, tmp_path, **changes)
    assert runs == 5
    assert len(files(tmp_path)) == 10


def test_another_text_before_the_end_of_the_video_finds_nothing(lab, tmp_path):
    kept = decode(lab, tmp_path)[2]
    assert kept.read("0", "0" * 64) is None


@pytest.mark.parametrize("fault", ["flip", "cut", "empty", "text", "swap"])
def test_a_damaged_file_is_set_aside_and_made_anew(lab, tmp_path, caplog, fault):
    expected, _, _ = decode(lab, tmp_path)
    damaged, other, *_ = files(tmp_path)
    content = bytearray(damaged.read_bytes())
    if fault == "flip":
        content[-100] ^= 1
    damaged.write_bytes(
        {
            "flip": bytes(content), "cut": bytes(content[:-1]), "empty": b"",
            "text": b"not a tensor", "swap": other.read_bytes(),
        }[fault]
    )  # fmt: skip
    bad = damaged.read_bytes()
    found, runs, kept = decode(lab, tmp_path)
    assert (found, runs, kept.num_read, kept.num_written) == (expected, 1, 4, 1)
    [aside] = (tmp_path / "quarantine").iterdir()
    assert aside.read_bytes() == bad
    assert "damaged" in caplog.text
    assert str(aside) in caplog.text
    assert decode(lab, tmp_path)[1] == 0


def test_a_prompt_about_no_clip_is_not_kept(lab, tmp_path):
    family = lab[0]
    row = family.text_row("Sum this up: a ball, a box.", "chat")
    _, runs, kept = decode(lab, tmp_path, [[Request(row, "0", 0, GREEDY, (0, 0))]])
    assert (runs, kept.num_read, kept.num_written) == (0, 0, 0)


def test_nothing_is_kept_below_the_space_that_must_stay_free(lab, tmp_path, caplog):
    expected = plain(lab)
    kept = KeptPrefixes(tmp_path / "none", MADE_WITH, min_free_bytes=2**62)
    decoder = Decoder(lab[1], lab[0], 4, kept)
    found = tokens({each.request.task: each for each in decoder.run(requests(lab[0]))})
    kept.wait()
    assert found == expected
    assert not files(tmp_path / "none")
    assert "--min-free" in caplog.text
    assert "others were not kept" in kept.lines()[0]


def test_a_disk_that_takes_nothing_costs_no_caption(lab, tmp_path, caplog):
    expected, _, _ = decode(lab, tmp_path / "room")
    (tmp_path / "full").mkdir()
    for folder in (tmp_path / "room").glob("??"):
        (tmp_path / "full" / folder.name).write_text("in the way")
    found, runs, kept = decode(lab, tmp_path / "full")
    assert (found, runs, kept.num_written) == (expected, 5, 0)
    assert "no more video parts are kept" in caplog.text


def test_a_file_in_the_folders_place_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="--keep-prefix"):
        KeptPrefixes(tmp_path / "file", MADE_WITH)


def test_the_command_keeps_video_parts_for_prompts_to_come(extracted, tmp_path):
    plain = Path(shutil.copytree(extracted, tmp_path / "plain"))
    cache = Path(shutil.copytree(extracted, tmp_path / "cache"))
    folder = str(tmp_path / "prefixes")
    made(cache, prompts=ONE_PROMPT, keep_prefix=folder)
    report, rows = made(cache, prompts=OTHER_PROMPT, keep_prefix=folder)
    lines = "\n".join(report_lines(report, verbose=True))
    assert f"{NUM_CLIPS} read, 0 written" in lines
    assert "decoding: 0 prefills of a video part" in lines
    made(plain, prompts=ONE_PROMPT)
    assert texts(rows) == texts(made(plain, prompts=OTHER_PROMPT)[1])


def test_plan_says_how_large_a_kept_video_part_is(extracted, tmp_path):
    cache = Path(shutil.copytree(extracted, tmp_path / "cache"))
    made(cache, prompts=ONE_PROMPT, keep_prefix=str(tmp_path / "prefixes"))
    sizes = []
    for path in files(tmp_path / "prefixes"):
        with safe_open(path, framework="pt") as file:
            sizes.append(sum(file.get_tensor(name).nbytes for name in file.keys()))  # noqa: SIM118
    with Catalog(cache / "catalog.sqlite") as catalog:
        frames = [clip["num_frames"] for clip in catalog.clips.rows()]
    config = family_of(Checkpoint.open("tiny")).full_config()
    asked = load_settings(None, {"compute_dtype": "float32"})
    assert sorted(sizes) == sorted(
        prefix_bytes(config, asked, row_tokens(config, count)) for count in frames
    )
