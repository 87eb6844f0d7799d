"""Compares two runs of a model: ids, positions, pixels, features, logits and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Limits:
    """What may differ.

    Args:
        pixels: most, after normalising. Resizes of Pillow and torchvision differ by up to nine of
            256 levels, in few places.
        pixels_mean: most on average.
        features: most, relative to the whole, where pixels are not the same bits.
        logits: the same of logits.
        same_pixels: the same of both, where pixels are the same bits.
        narrow: least distance between the two best logits, in standard deviations. Below it, a
            different order of additions may choose the other token, and the texts differ from
            there on.
    """

    pixels: float = 0.2
    pixels_mean: float = 1e-3
    features: float = 2e-2
    logits: float = 2e-2
    same_pixels: float = 1e-3
    narrow: float = 1e-3


LIMITS: Final = {
    "float32": Limits(),
    "bfloat16": Limits(features=5e-2, logits=5e-2, same_pixels=5e-2, narrow=5e-2),
}
"""By the type of the weights."""
OTHER_RESIZE: Final = Limits(0.5, 5e-3, 0.1, 0.15, 5e-2, 0.1)
"""Where frames are known to be resized in another way."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One thing of one clip."""

    clip: str
    what: str
    same: bool
    found: str


def compare(clip: str, ours: Tensors, theirs: Tensors, limits: Limits) -> list[Compared]:
    """Compare the inputs and the outputs of two runs.

    Args:
        clip: its name.
        ours: of the two stages; see `reference.recorded` and `reference.pixels_of`.
        theirs: of the model in one piece. What it does not have is not compared.
        limits: what may differ.
    """
    if "pixels" not in theirs or _are_same(ours, theirs, "pixels"):
        limits = replace(limits, features=limits.same_pixels, logits=limits.same_pixels)
    checks: dict[str, Callable[[], tuple[bool, str]]] = {
        "ids": lambda: _ids(ours["input_ids"], theirs["input_ids"]),
        "positions": lambda: _positions(ours, theirs),
        "pixels": lambda: _pixels(ours, theirs, limits),
        "features": lambda: _near(ours.get("features"), theirs["features"], limits.features),
        "first logits": lambda: _near(ours["logits"][:1], theirs["logits"][:1], limits.logits),
        "tokens": lambda: _tokens(ours["tokens"], theirs, limits.narrow),
    }
    left_out = {name for name, key in _NEEDS.items() if key not in theirs}
    return [
        Compared(clip, name, *check()) for name, check in checks.items() if name not in left_out
    ]


_NEEDS: Final = {
    "ids": "input_ids",
    "positions": "positions",
    "pixels": "pixels",
    "features": "features",
}


def _are_same(ours: Tensors, theirs: Tensors, name: str) -> bool:
    import torch

    return torch.equal(ours[name], theirs[name])


def _ids(ours: Tensor, theirs: Tensor) -> tuple[bool, str]:
    if ours.tolist() == theirs.tolist():
        return True, f"{len(ours)} tokens"
    if _collapsed(ours.tolist()) == theirs.tolist():
        return True, f"{len(theirs)} tokens, of which the release repeats one in the model"
    return False, f"{len(ours)} tokens for {len(theirs)}, {_first_other(ours, theirs)}"


def _collapsed(ids: list[int]) -> list[int]:
    """Return ids with their longest run of one token reduced to a single token."""
    ends = [i for i in range(1, len(ids) + 1) if i == len(ids) or ids[i] != ids[i - 1]]
    starts = [0, *ends[:-1]]
    start, end = max(zip(starts, ends, strict=True), key=lambda run: run[1] - run[0])
    return [*ids[: start + 1], *ids[end:]]


def _first_other(ours: Tensor, theirs: Tensor) -> str:
    pairs = zip(ours.tolist(), theirs.tolist(), strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        return "the same up to the end of the shorter"
    return f"first at {place}: {ours[place].tolist()}, not {theirs[place].tolist()}"


def _positions(ours: Tensors, theirs: Tensors) -> tuple[bool, str]:
    """Compare the positions of tokens, including the first generated one."""
    if "positions" not in ours:
        return False, "the two stages give none"
    a, b = (each["positions"].T for each in (ours, theirs))
    if a.tolist() != b.tolist():
        return False, f"{len(a)} tokens for {len(b)}, {_first_other(a, b)}"
    after = [each["next_position"].flatten().tolist() for each in (ours, theirs)]
    if after[0] != after[1]:
        return False, f"the first new token stands at {after[0][-1]}, not {after[1][-1]}"
    return True, f"{len(a)} tokens, the next at {after[1][-1]}"


def _pixels(ours: Tensors, theirs: Tensors, limits: Limits) -> tuple[bool, str]:
    a, b = ours["pixels"], theirs["pixels"]
    counts = [int(each["pixels_count"]) for each in (ours, theirs)]
    if counts[0] != counts[1]:
        return False, f"{counts[0]} values, not {counts[1]}"
    if _are_same(ours, theirs, "pixels"):
        return True, "the same bits"
    far = (a - b).abs()
    most, mean = float(far.max()), float(far.mean())
    shift = abs(float(ours["pixels_mean"] - theirs["pixels_mean"]))
    found = f"at most {most:.1e} apart, on average {mean:.1e}"
    return most <= limits.pixels and max(mean, shift) <= limits.pixels_mean, found


def _near(ours: Tensor | None, theirs: Tensor, limit: float) -> tuple[bool, str]:
    if ours is None:
        return False, "the two stages give none"
    if ours.shape != theirs.shape:
        return False, f"shape {list(ours.shape)}, not {list(theirs.shape)}"
    finite = theirs.isfinite() & ours.isfinite()
    a, b = (each.double() * finite for each in (ours.nan_to_num(), theirs.nan_to_num()))
    apart = float((a - b).norm() / b.norm().clamp_min(1e-12))
    return apart <= limit, f"{apart:.1e} apart, of {limit:.0e} that may be"


def _tokens(ours: Tensor, theirs: Tensors, narrow: float) -> tuple[bool, str]:
    wanted = theirs["tokens"].tolist()
    found = ours.tolist()
    if found == wanted:
        return True, f"{len(wanted)} tokens"
    first = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), 0)
    near = _gap(theirs["logits"][first])
    told = f"the first {first} of {len(wanted)}"
    if near < narrow:
        return True, f"{told}; the next was chosen by {near:.0e} standard deviations"
    return False, f"{told}, then {found[first]}, not {wanted[first]}"


def _gap(logits: Tensor) -> float:
    """Return how far the two likeliest tokens are apart, in standard deviations of all."""
    known = logits[logits.isfinite()]
    top = known.topk(2).values
    return float((top[0] - top[1]) / known.std().clamp_min(1e-12))
