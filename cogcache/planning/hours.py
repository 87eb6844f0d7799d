"""How long each stage takes for so many clips, from what one unit of work costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

CAPTION_TOKENS: Final = 120
"""Of a caption of a few sentences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """What one unit of each kind of work costs on a machine."""

    vision_flops: float
    """Operations a second of the vision half: two for each parameter and patch."""
    prefill_flops: float
    """Operations a second while a prompt is read: two for each parameter and token."""
    token_s_a_parameter: float
    """Seconds of one new token of one row, for each parameter of the language half."""
    source: str

    def words(self) -> str:
        """Say what they are."""
        return (
            f"{self.vision_flops / 1e9:,.0f} GFLOP/s in the vision half, "
            f"{self.prefill_flops / 1e9:,.0f} GFLOP/s in reading a prompt, and "
            f"{self.token_s_a_parameter * 1e12:.3g} ps a parameter for a new token, {self.source}"
        )


TWO_CORES: Final = UnitCosts(
    vision_flops=175e9,
    prefill_flops=290e9,
    token_s_a_parameter=18.7e-12,
    source="measured on two cores of a Zen 4 without a GPU (`cogcache help measurements`)",
)
"""From the flagship at full size: 300 s for 24 frames, 90 s for 1,620 tokens, 150 ms a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipWork:
    """What one clip asks of both halves."""

    vision_parameters: int
    language_parameters: int
    patches: int
    """Positions that the vision half sees of all frames."""
    row_tokens: int
    prompts: int

    def vision_s(self, costs: UnitCosts) -> float:
        """Return the seconds of stage one, decoding aside."""
        return 2.0 * self.vision_parameters * self.patches / costs.vision_flops

    def language_s(self, costs: UnitCosts) -> float:
        """Return the seconds of stage two: the video part once, then each caption by itself."""
        read_s = 2.0 * self.language_parameters * self.row_tokens / costs.prefill_flops
        new_s = self.language_parameters * CAPTION_TOKENS * costs.token_s_a_parameter
        return read_s + self.prompts * new_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedHours:
    """How long both stages take."""

    clips: int
    vision_s_a_clip: float
    language_s_a_clip: float
    unit_costs: str
    """What the seconds follow from, in words."""

    def hours(self, half: str) -> float:
        """Return the hours that the stage of a half takes for all clips."""
        return self.clip_s(half) * self.clips / 3600

    def clip_s(self, half: str) -> float:
        """Return the seconds that the stage of a half takes for one clip."""
        return self.vision_s_a_clip if half == "vision" else self.language_s_a_clip

    def as_dict(self) -> dict[str, Any]:
        """Return the row of times that `--json` prints."""
        return {
            "clips": self.clips,
            "vision_s_a_clip": self.vision_s_a_clip,
            "vision_hours": self.hours("vision"),
            "language_s_a_clip": self.language_s_a_clip,
            "language_hours": self.hours("language"),
            "unit_costs": self.unit_costs,
        }


def planned_hours(work: ClipWork, costs: UnitCosts, clips: int) -> PlannedHours:
    """Return the time that follows from what one unit of work costs."""
    return PlannedHours(
        clips=clips,
        vision_s_a_clip=work.vision_s(costs),
        language_s_a_clip=work.language_s(costs),
        unit_costs=f"at {costs.words()}; --measure tries it here",
    )


def measured_hours(seconds: Mapping[str, float], clips: int, source: str) -> PlannedHours:
    """Return the time that follows from the seconds of a clip, measured by stage."""
    return PlannedHours(
        clips=clips,
        vision_s_a_clip=seconds["extract"],
        language_s_a_clip=seconds["caption"],
        unit_costs=source,
    )
