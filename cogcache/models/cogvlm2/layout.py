"""How a prompt is laid out around the feature slots: the published templates.

    chat   bos, then for each frame its slots and its index as text, then the question
    vqa    as chat, but the question asks for a short answer
    base   bos, the slots of all frames, then the text as it is

The index follows its frame and is the frame's number in the clip, whatever its time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TEMPLATES = {
    "chat": ("Question: ", " Answer:"),
    "vqa": ("Question: ", " Short answer:"),
    "base": ("", ""),
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row for the decoder: ids and, for each, whether a feature takes its place."""

    input_ids: list[int]
    token_type_ids: list[int]


def question_text(query: str, layout: str) -> str:
    """Return the text behind the slots."""
    start, end = TEMPLATES[layout]
    if layout == "base":
        return query
    return f"{start}{query}{end}"


def build(
    encode: Callable[[str], list[int]],
    text: str,
    layout: str,
    num_frames: int,
    tokens_per_frame: int,
    special: tuple[int, int],
) -> Prompt:
    """Lay out one prompt.

    Args:
        encode: text to ids without special tokens.
        text: what stands behind the slots, `question_text` makes it.
        layout: `chat`, `vqa` or `base`.
        num_frames: frames of the clip.
        tokens_per_frame: feature rows of a frame, boi and eoi included.
        special: the ids of bos and of the slots (the padding id, as published).
    """
    bos, slot = special
    ids, types = [bos], [0]
    for frame in range(num_frames):
        ids += [slot] * tokens_per_frame
        types += [1] * tokens_per_frame
        if layout != "base":
            index = encode(str(frame))
            ids += index
            types += [0] * len(index)
    tail = encode(text)
    return Prompt(ids + tail, types + [0] * len(tail))
