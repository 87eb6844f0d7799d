"""How much captions and token probabilities of two precisions differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

RATED = ("empty", "looping", "no_end")
"""The flags whose rates are given."""
WORST = 10


@dataclass(frozen=True, slots=True)
class Expectations:
    """Expectations at the places of one caption, compared."""

    positions: int
    kl: float
    """Mean over the places of the Kullback-Leibler divergence, in nats."""
    kl_max: float
    agreement: float
    """Part of the places at which the likeliest token is the same."""


def compare(reference: Tensor, other: Tensor) -> Expectations:
    """Compare log probabilities float32 [L, V], place by place."""
    divergences = (reference.exp() * (reference - other)).sum(dim=-1).clamp(min=0)
    same = reference.argmax(dim=-1) == other.argmax(dim=-1)
    return Expectations(
        positions=len(reference),
        kl=float(divergences.mean()),
        kl_max=float(divergences.max()),
        agreement=float(same.float().mean()),
    )


def similarity(one: str, other: str) -> float:
    """Return the part of the words that two captions share, in order; 1 for equal captions."""
    return SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()


@dataclass(frozen=True, slots=True)
class ComparedCaptions:
    """What both precisions said about one clip, asked one prompt."""

    video: str
    start_s: float
    end_s: float | None
    prompt_name: str
    prompt: str
    reference_caption: str
    caption: str
    reference_flags: tuple[str, ...]
    flags: tuple[str, ...]
    similarity: float
    expectations: Expectations
    offset_s: float = 0.0
    """The time that a player shows at the video's first frame."""

    def row(self) -> dict[str, Any]:
        """Return the pair with all its figures side by side."""
        fields = asdict(self)
        return {**fields, **fields.pop("expectations")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far two precisions may be apart; None for no bound."""

    max_kl: float | None = None
    min_agreement: float | None = None
    min_similarity: float | None = None
    max_flagged: float | None = None
    """How much larger the part of captions with a flag may be than that of the reference."""

    def broken_by(self, found: Mapping[str, float]) -> list[str]:
        """Say which bounds do not hold."""
        checks = (
            ("kl", self.max_kl, 1, "at most"),
            ("agreement", self.min_agreement, -1, "at least"),
            ("similarity", self.min_similarity, -1, "at least"),
            ("flagged_more", self.max_flagged, 1, "at most"),
        )
        return [
            f"{name} is {found[name]:.4g}, {words} {bound:.4g} was asked for"
            for name, bound, sign, words in checks
            if bound is not None and not sign * found[name] <= sign * bound
        ]


def summary(pairs: Sequence[ComparedCaptions]) -> dict[str, float]:
    """Return the figures over all pairs; those of places are weighted by their number."""
    places = sum(pair.expectations.positions for pair in pairs)
    count = len(pairs)
    found: dict[str, float] = {
        "captions": count,
        "positions": places,
        "kl": sum(p.expectations.kl * p.expectations.positions for p in pairs) / places,
        "kl_max": max(pair.expectations.kl_max for pair in pairs),
        "agreement": sum(p.expectations.agreement * p.expectations.positions for p in pairs)
        / places,
        "similarity": sum(pair.similarity for pair in pairs) / count,
        "identical": sum(pair.caption == pair.reference_caption for pair in pairs) / count,
    }
    for flag in RATED:
        found[f"reference_{flag}"] = sum(flag in pair.reference_flags for pair in pairs) / count
        found[flag] = sum(flag in pair.flags for pair in pairs) / count
    flagged, before = (
        sum(bool({*RATED} & {*flags}) for flags in each) / count
        for each in ([p.flags for p in pairs], [p.reference_flags for p in pairs])
    )
    return {**found, "flagged_more": flagged - before}


def worst(pairs: Sequence[ComparedCaptions]) -> list[ComparedCaptions]:
    """Return the pairs that are furthest apart, in words and then in expectations."""
    return sorted(pairs, key=lambda pair: (pair.similarity, -pair.expectations.kl))[:WORST]
