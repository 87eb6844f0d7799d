"""Write the configs of families from the defaults; with --check, only compare them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogcache.settings.settings import DEFAULT_PROMPT, TABLES, Leaf, leaves

FOLDER = Path(__file__).parent.parent / "configs"
Value = bool | int | float | str
PIXELS_OF = "As qwen-vl-utils, the authors' own code, has it"


def _pixels(side: int) -> dict[str, tuple[Value, str]]:
    """Return Qwen's limits of pixels, of tokens that are so many pixels wide and high."""
    area = side * side
    return {
        "max_pixels": (768 * area, PIXELS_OF),
        "min_pixels": (128 * area, PIXELS_OF),
        "max_video_pixels": (2 * 115_200 * area, PIXELS_OF),
    }


SPREAD = ("spread", "Its own processor takes frames of the whole clip, too")


@dataclass(frozen=True)
class Recipe:
    """What a family's file says beside the defaults: a value and the reason for it, by key."""

    title: str
    model: str
    changes: dict[str, tuple[Value, str]] = field(default_factory=dict)


RECIPES = {
    "qwen2-vl": Recipe(
        "Qwen2-VL: frames in pairs, at their own size.", "Qwen/Qwen2-VL-7B-Instruct", _pixels(28)
    ),
    "qwen2.5-vl": Recipe(
        "Qwen2.5-VL: as Qwen2-VL, and it knows how many seconds lie between frames.",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        _pixels(28),
    ),
    "qwen3-vl": Recipe(
        "Qwen3-VL: features on several levels; times stand in the prompt.",
        "Qwen/Qwen3-VL-8B-Instruct",
        _pixels(32),
    ),
    "glm4v": Recipe(
        "GLM-4.1V: times stand in the prompt; it thinks before it answers.",
        "zai-org/GLM-4.1V-9B-Thinking",
        {"max_new_tokens": (1024, "Its thoughts come before the caption, and count")},
    ),
    "llava-onevision": Recipe(
        "LLaVA-OneVision: 196 tokens a frame.", "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    ),
    "llava-next-video": Recipe(
        "LLaVA-NeXT-Video: 144 tokens a frame.", "llava-hf/LLaVA-NeXT-Video-7B-hf"
    ),
    "video-llava": Recipe(
        "Video-LLaVA: 257 tokens a frame.",
        "LanguageBind/Video-LLaVA-7B-hf",
        {"max_frames": (8, "As its own processor; many more do not fit its context of 4096")},
    ),
    "internvl": Recipe(
        "InternVL 3, in the layout of transformers (ids that end in -hf): 256 tokens a frame.",
        "OpenGVLab/InternVL3-8B-hf",
    ),
    "smolvlm": Recipe(
        "SmolVLM 2: small; times stand in the prompt.", "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    ),
    "videollama3": Recipe(
        "VideoLLaMA 3: what a frame repeats of the one before is not cached.",
        "lkhl/VideoLLaMA3-2B-Image-HF",
    ),
}


def text_of(recipe: Recipe) -> str:
    """Return a complete file."""
    lines = [f"# {recipe.title}", "#"]
    lines += [
        "# Every setting stands here. A line says `default: ...` where its value is another.",
        "",
    ]
    for table in TABLES:
        if table != "model":
            lines += ["", f"[{table}]"]
        lines += [line_of(leaf, recipe) for leaf in leaves(table)]
    return "\n".join([*lines, "", "[prompts]", f'default = "{DEFAULT_PROMPT}"', ""])


def line_of(leaf: Leaf, recipe: Recipe) -> str:
    """Return the line of one setting, with its default and the reason where it differs."""
    changes = {"model": (recipe.model, ""), "strategy": SPREAD, **recipe.changes}
    default: Any = leaf.default if leaf.default is not None else "" if leaf.type is str else 0
    default = "" if leaf.several else default
    if leaf.name not in changes:
        return f"{leaf.name} = {shown(default)}"
    value, reason = changes[leaf.name]
    told = f"# default: {shown(default)}"
    return f"{leaf.name} = {shown(value)}  {told}. {reason}".removesuffix(". ")


def shown(value: Value) -> str:
    """Return a value as TOML writes it."""
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def main() -> None:
    """Write the files, or compare them."""
    for name, recipe in RECIPES.items():
        path, text = FOLDER / f"{name}.toml", text_of(recipe)
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            sys.exit(f"{path.name} is not what the code says: run `make docs`")


if __name__ == "__main__":
    main()
