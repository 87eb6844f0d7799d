"""Write the table of docs/families.md from the code and the goldens; with --check, compare it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection
from pathlib import Path

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
_AMID = (
    "transformers 5.3 and later count the text behind a video from its height and width alone "
    "(huggingface/transformers#45381): text stands amid the video. cogcache counts by itself"
)
_AROUND = (
    "transformers 5.20 and later leave the video's outer marks around the frames' own: two ids too "
    "many. cogcache replaces all three"
)
_NONE = "nothing"
DIFFERS = {
    "qwen2_vl": _AMID,
    "qwen2_5_vl": f"{_AMID}. The rate is that of the authors' own utility: frames taken / all "
    "frames × fps",
    "qwen2_5_omni_thinker": "the rate, as for `qwen2_5_vl`",
    "qwen3_vl": _AROUND,
    "qwen3_vl_moe": _AROUND,
    "qwen3_5": _AROUND,
    "qwen3_5_moe": _AROUND,
    "ernie4_5_vl_moe": _AMID,
    "llava_next_video": "today's processor cannot be loaded with files as published "
    "(huggingface/transformers#42142). cogcache names the class of its video processor",
    "smolvlm": "today's processor makes frames smaller and blows them up again. cogcache keeps "
    "`video_sampling.video_size`",
    "glm4v": "4.53 resized without antialiasing, later releases resize with it. This is left so: "
    "features differ by up to 10 %, and tokens may",
}
"""What today's release or the published one does otherwise, and what cogcache does about it."""
NOT_COMPARED: dict[str, str] = {}
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


def row_of(name: str) -> str:
    """Return a family's line."""
    release = RELEASES[name].transformers
    path = GOLDENS / name / "golden.json"
    if path.is_file() and json.loads(path.read_text())["transformers"] != release:
        sys.exit(f"the golden of {name} is not of transformers {release}")
    differs = DIFFERS.get(name, _NONE if RELEASES[name].golden else "not known")
    told = (f"`{name}`", release, compared(name), differs, frames(RULES.get(name), name))
    return f"| {' | '.join(told)} |\n"


def page_of(text: str) -> str:
    """Return ``text`` with the table written anew."""
    body = HEAD + "".join(row_of(entry.name) for entry in FAMILIES)
    mark = r"(?<=<!-- table: releases -->\n).*?(?=<!-- end -->)"
    text, found = re.subn(mark, lambda _: body, text, flags=re.DOTALL)
    if found != 1:
        sys.exit(f"{PAGE.name} should have one mark <!-- table: releases -->, not {found}")
    return text


def main() -> None:
    """Write the page, or compare it."""
    text = PAGE.read_text()
    if "--check" not in sys.argv:
        PAGE.write_text(page_of(text))
    elif page_of(text) != text:
        sys.exit(f"{PAGE.name} is not what the code says: run `make docs`")


if __name__ == "__main__":
    main()
