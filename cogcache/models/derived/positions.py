"""Rotary positions with axes for time, height and width (M-RoPE), as families were published.

The rule is that of "Qwen2-VL" (arXiv 2409.12191, section 2.1, figure 3) and of the first release of
transformers with each family: a text token has one number on all three axes; the patches of a
video count on from there, each axis for itself; what follows has *the highest position so far, on
any axis, plus 1*. transformers 5.3 and later count on from the height and width alone
(huggingface/transformers#45381), so that the text behind a long video lies in the midst of it.
Everything here is a pure function of ids, grids and rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

GRID = "video_grid_thw"
"""Name of the input that holds a video's patches along time, height and width. int64 [1, 3]."""


@dataclass(frozen=True, slots=True)
class PositionRule:
    """How a family counts the positions of a video's patches.

    Args:
        frames_apart: texts stand between the frames, so that each is a grid of its own.
        rate: name of the input with the seconds from one row of patches in time to the next;
            without it they are 1 apart.
        ticks: where the config says how many positions a second has.
        time_merge: where the config says how many rows of patches in time make one of features.
    """

    frames_apart: bool = False
    rate: str | None = None
    ticks: tuple[str, ...] = ()
    time_merge: tuple[str, ...] = ()


_APART = PositionRule(frames_apart=True)

RULES: Mapping[str, PositionRule] = {
    "qwen2_vl": PositionRule(),
    "qwen2_5_vl": PositionRule(
        rate="second_per_grid_ts", ticks=("vision_config", "tokens_per_second")
    ),
    "qwen2_5_omni_thinker": PositionRule(
        rate="video_second_per_grid", ticks=("position_id_per_seconds",)
    ),
    "ernie4_5_vl_moe": PositionRule(time_merge=("vision_config", "temporal_merge_size")),
    "qwen3_vl": _APART,
    "qwen3_vl_moe": _APART,
    "qwen3_5": _APART,
    "qwen3_5_moe": _APART,
    "glm4v": _APART,
    "glm4v_moe": _APART,
    "glm46v": _APART,
    "glm_ocr": _APART,
    "cohere_compass": _APART,
}
"""By family. One that is not here has positions on a line, or a scheme of today's release alone."""


RATE_ALONE: Mapping[str, str] = {"qwen3_omni_moe_thinker": "video_second_per_grid"}
"""Name of the input with the rate, of families whose positions transformers counts as published:
not cut off to whole numbers. Only the rate is ours."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Feature rows of one video or frame, in the order of their slots: time, height, width.

    Args:
        times: position of each row in time, from the first on. int64 [T].
        height: rows of features in a picture.
        width: columns of features in a picture.
    """

    times: Tensor
    height: int
    width: int

    @property
    def count(self) -> int:
        """Number of feature rows."""
        return len(self.times) * self.height * self.width

    def positions(self, start: int) -> Tensor:
        """Return where its features stand, from `start` on. int64 [3, count]."""
        import torch

        axes = (self.times, torch.arange(self.height), torch.arange(self.width))
        return torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(3, -1) + start


def positions_of(slots: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Return the positions of a prompt's tokens.

    Args:
        slots: whether features stand in a token's place. bool [L].
        grids: of the videos or frames, in the order of the prompt; each has as many slots as rows.

    Returns:
        Positions in time, height and width. int64 [3, L].

    Raises:
        ValueError: the slots are not those of the grids.

    Example:
        >>> import torch
        >>> slots = torch.tensor([False, True, True, True, False])
        >>> positions_of(slots, [Grid(torch.tensor([0, 2, 4]), 1, 1)])[:, -2:].tolist()
        [[5, 6], [1, 6], [1, 6]]
    """
    import torch

    parts, place, start = [], 0, 0
    for grid in grids:
        text = int(slots[place:].int().argmax()) if slots[place:].any() else 0
        part = slots[place + text : place + text + grid.count]
        if len(part) < grid.count or not part.all():
            raise ValueError(f"no {grid.count} slots beside each other for a grid")
        parts += [_line(start, text), grid.positions(start + text)]
        place, start = place + text + grid.count, int(parts[-1].max()) + 1
    if slots[place:].any():
        raise ValueError("there are more slots than rows of features")
    return torch.cat([*parts, _line(start, len(slots) - place)], dim=1)


def grids_of(
    rule: PositionRule,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    most: float = math.inf,
) -> list[Grid]:
    """Return the grids of a clip's features.

    Args:
        rule: the family's.
        tensors: what the processor gave beside pixels, by name.
        config: of the whole model, defaults included.
        most: slots that there are.

    Raises:
        ValueError: there is no grid, or it has more rows in time than there are slots.
    """
    import torch

    if GRID not in tensors:
        raise ValueError(f"no tensor {GRID} stands beside them")
    patches, height, width = (int(each) for each in tensors[GRID].flatten())
    merge = int(config["vision_config"]["spatial_merge_size"])
    height, width = height // merge, width // merge
    if rule.time_merge:
        patches //= int(_at(config, rule.time_merge))
    if patches > most:
        raise ValueError(f"a grid of {patches} rows in time for {most} slots")
    if rule.frames_apart:
        return [Grid(torch.zeros(1, dtype=torch.long), height, width)] * patches
    times = torch.arange(patches)
    if rule.rate:
        # In this order and in float32, as published: cut off, a rounding is a whole position.
        times = (times * tensors[rule.rate].float().flatten()[0] * _at(config, rule.ticks)).long()
    return [Grid(times, height, width)]


def with_text_axis(positions: Tensor) -> Tensor:
    """Put the plain count of tokens before the axes, as transformers wants it. int64 [4, L]."""
    import torch

    return torch.cat((_line(0, positions.shape[1])[:1], positions))


def left_padded(rows: Sequence[Tensor]) -> Tensor:
    """Stack positions int64 [4, L_i] into int64 [4, B, max L], filled up with 0 on the left."""
    import torch

    width = max(row.shape[1] for row in rows)
    filled = [torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows]
    return torch.stack(filled, dim=1)


def _line(start: int, length: int) -> Tensor:
    import torch

    return torch.arange(start, start + length).expand(3, -1)


def _at(config: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = config
    for name in path:
        found = found[name]
    return found
