"""Write the table of docs/families.md from the code and the goldens; with --check, compare it."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path

from marked_tables import with_table, write_or_check
from safetensors import safe_open

from cogcache.models.derived.sampling import RULES, PublishedRule
from cogcache.models.registry import FAMILIES
from cogcache.models.releases import RELEASES

PAGE = Path(__file__).with_name("families.md")
GOLDENS = Path(__file__).parents[1] / "tests" / "golden" / "families"
HEAD = (
    "| Family | transformers | Equal to that release | What differs, and why | Frames of "
    "`--strategy published` |\n| --- | --- | --- | --- | --- |\n"
)
PARTS = {
    "input_ids": "ids",
    "pixels": "pixels",
    "features": "features",
    "positions": "positions",
    "extra.": "grids and rates",
    "logits": "logits",
    "generated": "8 tokens",
    "long.": "positions of 60 s",
}
"""Tensors of a golden, and what is compared by them."""
DONE = {
    "glm4v": "left so: 4.53 resized without it, every later release and every other family with "
    "it; features differ by up to 10 %, and tokens may",
    "gemma4": "left so: it is a correction (huggingface/transformers#46850)",
}
"""What is done about it, where it is not what the release did."""
SOURCES = {
    "qwen2_vl": "huggingface/transformers#45381",
    "qwen2_5_vl": "huggingface/transformers#45381; the rate is that of qwen-vl-utils",
    "qwen2_5_omni_thinker": "the rate is that of qwen-omni-utils",
    "qwen3_omni_moe_thinker": "the rate is that of qwen-omni-utils",
    "ernie4_5_vl_moe": "huggingface/transformers#45381",
    "llava_next_video": "huggingface/transformers#42142",
}
"""Where that is told, or whose rule is followed."""
NOT_COMPARED = {
    "gemma4": "its release let pictures attend across the sliding window, later ones do not",
    "lfm3_vl": "its release is today's",
    "minimax_m3_vl": "its release leaves it to the user to resize frames to whole patches",
}
"""Why no golden of a family's release is in the suite, beside that nobody has made one."""
FRAMES = {
    "qwen2_frames": "2 a second, 4 to 768, an even number",
    "qwen3_frames": "2 a second, 4 to 768",
    "glm4v_frames": "2 a second, 600 at most",
    "glm46v_frames": "6, 2 or 1 a second: fewer the longer the clip; 640 at most",
    "smolvlm_frames": "1 a second, 64 at most",
    "midpoint_frames": "the middle of `max_frames` equal parts",
    "first_of_part_frames": "the first of `max_frames` equal parts; the release's example has 8",
    "llama3_frames": "1 a second, 4 to 180",
    "ernie_frames": "180 over the clip, all of a shorter one",
    "molmo2_frames": "64 over the clip, 2 a second at most",
    "gemma4_frames": "32 over the clip",
    "minicpm_frames": "1 a second, 128 at most",
}
"""By the name of the rule, in words; checkpoints may say other numbers."""


def compared(name: str) -> str:
    """Return what a family's golden holds, in words; what stands for it where there is none."""
    if name == "cogvlm2":
        return "features, logits and tokens, by the published code (tests/golden/cogvlm2-mini)"
    path = GOLDENS / name / "golden.safetensors"
    if not path.is_file():
        reason = f": {NOT_COMPARED[name]}" if name in NOT_COMPARED else ""
        return f"not compared{reason}; shown by the contract"
    with safe_open(path, framework="np") as file:
        names: Collection[str] = [*file.keys()]
    found = [
        words for start, words in PARTS.items() if any(each.startswith(start) for each in names)
    ]
    return ", ".join(found)


def frames(rule: PublishedRule | None, name: str) -> str:
    """Return in words what the strategy `published` takes."""
    if name == "cogvlm2":
        return "refused: `per_second` and `uniform` are its published ways"
    return "refused: its release takes none" if rule is None else FRAMES[rule.frames.__name__]


def differs(name: str) -> str:
    """Return what newer releases make of the same input, and what is done about it."""
    release = RELEASES[name]
    if not release.otherwise:
        return "nothing" if release.golden else "not known"
    done = DONE.get(name, "cogcache does as published")
    source = f" ({SOURCES[name]})" if name in SOURCES else ""
    return f"{release.otherwise}{source}; {done}"


def row_of(name: str) -> str:
    """Return a family's line."""
    release = RELEASES[name].transformers
    path = GOLDENS / name / "golden.json"
    if path.is_file() and json.loads(path.read_text())["transformers"] != release:
        sys.exit(f"the golden of {name} is not of transformers {release}")
    told = (f"`{name}`", release, compared(name), differs(name), frames(RULES.get(name), name))
    return f"| {' | '.join(told)} |\n"


def page_of(text: str) -> str:
    """Return ``text`` with the table written anew."""
    body = HEAD + "".join(row_of(entry.name) for entry in FAMILIES)
    return with_table(text, PAGE, "releases", body)


if __name__ == "__main__":
    write_or_check(PAGE, page_of)
