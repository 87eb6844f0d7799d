"""Training batches: rendered clips and all their questions in one sequence a clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from cogcache.models.cogvlm2.layout import build, question_text
from cogcache.models.cogvlm2.positions import shared_position_ids
from cogcache.models.cogvlm2.preprocessing import MEAN, STD
from cogcache.selftest.shapes import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    FPS,
    NUM_FRAMES,
    QUESTIONS,
    SHAPES,
    Scene,
    draw_scene,
    render,
)
from tiny_training.tokenizer import BOS, EOS, PAD

FRAME_CLASSES = {
    "color": list(COLORS),
    "shape": list(SHAPES),
    "count": list(COUNTS),
    "background": list(BACKGROUNDS),
}
"""What can be seen in a single frame."""


@dataclass(frozen=True)
class Frames:
    """Pictures of N clips at T moments each, and what can be seen in a single one.

    Args:
        pixel_values: float32 [N * T, 3, S, S].
        classes: by attribute, which of its words holds, as an index. Each int64 [N * T].
        middles: (x, y) of the middle of the shapes, 0 to 1. float32 [N * T, 2].
    """

    pixel_values: Tensor
    classes: dict[str, Tensor]
    middles: Tensor


@dataclass(frozen=True)
class Batch:
    """N clips of T frames; a sequence is the frames' slots, then a block for each question.

    Args:
        frames: all clips' frames.
        input_ids: int64 [N, L].
        token_type_ids: 1 for a feature slot. Shape [N, L].
        position_ids: every block starts where the frames end. Shape [N, L].
        attention_mask: a block sees the frames and itself, up to the present. Bool [N, 1, L, L].
        labels: the next token inside an answer, -100 elsewhere. Shape [N, L].
        attributes: index into ``QUESTIONS`` of what is asked at a position, -1 before. [N, L].
    """

    frames: Frames
    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    attributes: Tensor


def sample_times(num_frames: int) -> list[float]:
    """Return the times of the frames that the published 'chat' rule takes from a clip."""
    last = (num_frames - 1) / FPS
    return [min(float(second), last) for second in range(round(last) + 1)]


def make_batch(
    tokenizer: Tokenizer, rng: np.random.Generator, size: int, side: int, tokens_per_frame: int
) -> Batch:
    """Return a batch of new clips of one length.

    Args:
        tokenizer: of `tiny_training.tokenizer`.
        rng: where all of the batch's randomness comes from.
        size: number of clips N.
        side: the model's picture side S in pixels.
        tokens_per_frame: feature slots of a frame.
    """
    num_frames = int(rng.choice(NUM_FRAMES))
    scenes = [draw_scene(rng, num_frames) for _ in range(size)]
    times = sample_times(num_frames)
    rows = [_row(tokenizer, rng, scene, len(times), tokens_per_frame) for scene in scenes]
    ids, types, blocks, labels, attributes = (
        _stack([row[part] for row in rows], pad)
        for part, pad in enumerate((tokenizer.token_to_id(PAD), 0, -1, -100, -1))
    )
    return Batch(
        frames=_frames(rng, scenes, times, side),
        input_ids=ids,
        token_type_ids=types,
        position_ids=_positions(types, blocks),
        attention_mask=_mask(blocks),
        labels=labels,
        attributes=attributes,
    )


def make_frames(rng: np.random.Generator, size: int, side: int) -> Frames:
    """Return the first and the last frame of `size` new clips of one length, S pixels square."""
    num_frames = int(rng.choice(NUM_FRAMES))
    scenes = [draw_scene(rng, num_frames) for _ in range(size)]
    return _frames(rng, scenes, [0.0, sample_times(num_frames)[-1]], side)


def _frames(rng: np.random.Generator, scenes: list[Scene], times: list[float], side: int) -> Frames:
    return Frames(
        pixel_values=_pixels(rng, scenes, times, side),
        classes=_classes(scenes, len(times)),
        middles=_middles(scenes, times),
    )


def _row(
    tokenizer: Tokenizer, rng: np.random.Generator, scene: Scene, frames: int, slots: int
) -> tuple[list[int], ...]:
    """Return ids, types, block numbers (0 for the frames), labels and attributes."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    special = (tokenizer.token_to_id(BOS), tokenizer.token_to_id(PAD))
    prompt = build(encode, "", "chat", frames, slots, special)
    ids, types = prompt.input_ids, prompt.token_type_ids
    blocks, labels, attributes = [0] * len(ids), [-100] * len(ids), [-1] * len(ids)
    for number, (attribute, queries) in enumerate(QUESTIONS.items()):
        asked = encode(question_text(queries[_often_first(rng, len(queries))], "chat"))
        answer = [*encode(f" {scene.answer(attribute)}"), tokenizer.token_to_id(EOS)]
        ids += asked + answer
        length = len(asked) + len(answer)
        types += [0] * length
        blocks += [number + 1] * length
        labels += [-100] * (len(asked) - 1) + answer + [-100]
        attributes += [number] * length
    return ids, types, blocks, labels, attributes


def _often_first(rng: np.random.Generator, size: int) -> int:
    return 0 if rng.random() < 0.4 else int(rng.integers(size))


def _stack(rows: list[list[int]], pad: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])


def _positions(types: Tensor, blocks: Tensor) -> Tensor:
    positions = shared_position_ids(types)
    frames = blocks == 0
    end = torch.where(frames, positions, 0).amax(1, keepdim=True) + 1
    starts = torch.ones_like(frames)
    starts[:, 1:] = blocks[:, 1:] != blocks[:, :-1]
    place = torch.arange(blocks.shape[1]).expand_as(blocks)
    since = place - torch.where(starts, place, 0).cummax(1).values
    return torch.where(frames, positions, end + since)


def _mask(blocks: Tensor) -> Tensor:
    """Keep blocks apart: each question is answered as if it alone had been asked."""
    length = blocks.shape[1]
    own = blocks[:, :, None] == blocks[:, None, :]
    allowed = own | (blocks[:, None, :] == 0)
    past = torch.ones(length, length, dtype=torch.bool).tril()
    return (allowed & past)[:, None]


def _classes(scenes: list[Scene], frames: int) -> dict[str, Tensor]:
    return {
        attribute: torch.tensor(
            [words.index(getattr(scene, attribute)) for scene in scenes]
        ).repeat_interleave(frames)
        for attribute, words in FRAME_CLASSES.items()
    }


def _middles(scenes: list[Scene], times: list[float]) -> Tensor:
    starts = torch.tensor([scene.middle for scene in scenes])[:, None]
    velocities = torch.tensor([scene.velocity for scene in scenes])[:, None]
    return (starts + velocities * torch.tensor(times)[:, None]).flatten(0, 1)


def _pixels(rng: np.random.Generator, scenes: list[Scene], times: list[float], side: int) -> Tensor:
    """Render at the model's size, with a little noise in place of a codec's."""
    pictures = torch.from_numpy(render(scenes, times, side)).flatten(0, 1).permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    level = torch.rand(len(scenes), generator=generator).repeat_interleave(len(times)) * 3
    noise = torch.randn(pictures.shape, generator=generator) * level.view(-1, 1, 1, 1)
    scaled = (pictures + noise).clamp(0, 255) / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
