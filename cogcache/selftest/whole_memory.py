"""How much memory the whole model needs, by the numbers of `plan`, and whether that fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cogcache.errors import ConfigError
from cogcache.planning import Job, make_plan, memory_for, usable_bytes, whole_bytes
from cogcache.settings import Settings
from cogcache.system import available_bytes, pick_device, sample
from cogcache.units import format_bytes

DTYPES: Final = ("float32", "bfloat16")
"""The first that fits is taken: differences are told from roundings best in the first."""
NOTHING_QUANTISED: Final = {"quantization": "none", "head_quantization": "none", "adapter": None}
"""Settings of the language half with which it is the checkpoint's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """What the whole model takes in one precision, and how it is placed.

    Args:
        dtype: of its weights.
        weights_bytes: all of them.
        activations_bytes: of a clip's vision pass or prefill, whichever is more; keys and values.
        least_bytes: with all else on the disk: the largest block twice, and the activations.
        usable_bytes: what there is for it.
        given: how the memory was named: `auto`, or a size.
        device: where it runs.
        offload: whether what does not fit may wait on the disk.
    """

    dtype: str
    weights_bytes: int
    activations_bytes: int
    least_bytes: int
    usable_bytes: int
    given: str
    device: str
    offload: bool

    @property
    def total_bytes(self) -> int:
        """What it takes in memory as a whole."""
        return self.weights_bytes + self.activations_bytes

    @property
    def fits(self) -> bool:
        """Whether it fits as a whole."""
        return self.total_bytes <= self.usable_bytes

    def lines(self) -> list[str]:
        """Say what it takes.

        Raises:
            ConfigError: it does not fit.
        """
        parts = f"weights {format_bytes(self.weights_bytes)}, activations and cache "
        parts += format_bytes(self.activations_bytes)
        told = f"the whole model in {self.dtype} takes {format_bytes(self.total_bytes)}: {parts}"
        there = f"{format_bytes(max(0, self.usable_bytes))} may be used on {self.device}"
        if self.fits:
            return [f"{told}; {there}"]
        if self.offload and self.least_bytes <= self.usable_bytes:
            return [f"{told}; {there}: the rest waits on the disk"]
        on_device = self.device != "cpu"
        wanted = self.least_bytes if self.offload else self.total_bytes
        enough = format_bytes(whole_bytes(wanted, on_device=on_device))
        hint = f"give it {enough} or more" + (" with --memory" if self.given != "auto" else "")
        if not self.offload:
            hint += ", or --offload: what does not fit waits on the disk, and takes its time"
        raise ConfigError(f"{told}, and {there}", hint)

    def placement(self) -> dict[str, Any]:
        """Return how `from_pretrained` is to place it: `device_map` and `max_memory`."""
        if self.fits:
            on_cpu = self.device == "cpu"
            return {"device_map": None if on_cpu else {"": self.device}, "max_memory": {}}
        room = self.usable_bytes - self.activations_bytes
        if self.device == "cpu":
            return {"device_map": "auto", "max_memory": {"cpu": room}}
        number = self.device.partition(":")[2] or "0"
        limits = {number: room, "cpu": int(usable_bytes(available_bytes(), on_device=False))}
        return {"device_map": "auto", "max_memory": limits}


def needed(
    settings: Settings, dtype: str, frames: int, size: tuple[int, int], *, offload: bool
) -> Needed:
    """Add up what the whole model takes.

    Args:
        settings: model, device and memory.
        dtype: `float32`, `bfloat16`, or `auto` for the first that fits.
        frames: most that a clip has.
        size: width and height of its frames.
        offload: whether what does not fit may wait on the disk.
    """
    asked = DTYPES if dtype == "auto" else (dtype,)
    found = [_in(settings, each, frames, size, offload) for each in asked]
    return next((each for each in found if each.fits), found[-1])


def _in(
    settings: Settings, dtype: str, frames: int, size: tuple[int, int], offload: bool
) -> Needed:
    device = pick_device(settings.device)
    plain = settings.language.model_copy(update={**NOTHING_QUANTISED, "compute_dtype": dtype})
    vision = settings.vision.model_copy(update={"vision_dtype": dtype, "frames_per_batch": frames})
    exact = settings.model_copy(
        update={"vision": vision, "language": plain, "device": device, "memory": _PLENTY}
    )
    plan = make_plan(exact, Job(frames=frames, size=size))
    [row] = plan.memories
    halves = [each for each in plan.halves if each.is_asked]
    weights = sum(each.weights_bytes for each in halves)
    beside = row.language.plan.peak_bytes - row.language.plan.weights_bytes
    activations = max(row.vision.plan.activations_bytes, beside)
    blocks = [
        choice.plan.weights_bytes // max(1, choice.num_layers)
        for choice in (row.vision, row.language)
    ]
    ends = [each.parts.embedding_bytes + each.parts.head_bytes for each in halves if each.parts]
    memory = memory_for(settings, device)
    if settings.memory == "auto" and device == "cpu":
        memory -= sample().host_bytes  # what the other process holds before any weight
    return Needed(
        dtype=dtype,
        weights_bytes=weights,
        activations_bytes=activations,
        least_bytes=activations + sum(ends) + 2 * max(blocks),
        usable_bytes=usable_bytes(memory, on_device=device != "cpu"),
        given=settings.memory,
        device=device,
        offload=offload,
    )


_PLENTY: Final = "100000GiB"
"""So much memory that nothing is offloaded: the plan then counts the whole model."""
