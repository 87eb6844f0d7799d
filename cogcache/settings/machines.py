"""Settings of a run that is one of several, or that has several devices or machines at work."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cogcache.settings.fields import NoneIfEmpty, NoneIfZero, Positive, Table
from cogcache.settings.work_share import WorkShare

DEVICE = r"(cpu|cuda|xpu)(:\d+)?|mps"


def _is_shard(text: str | None) -> str | None:
    return None if text is None else str(WorkShare.parse(text))


def _are_devices(text: str | None) -> str | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if bad := [name for name in names if not re.fullmatch(DEVICE, name)]:
        raise ValueError(f"{bad[0]!r} is no device: write them as cuda:0,cuda:1 or cpu,cpu")
    return ",".join(names)


def _is_number(text: str) -> str:
    if text != "auto" and not re.fullmatch(r"[1-9]\d*", text):
        raise ValueError(f"workers must be auto or a whole number from 1, not {text!r}")
    return text


class Machines(Table):
    """Who does the work: one device or many, one machine or many. Part of no key."""

    engine: Literal["local", "ray"] = "local"
    """`local`: this machine alone; `ray`: workers on a Ray cluster (docs/clusters.md)."""
    devices: Annotated[str | None, AfterValidator(_are_devices), NoneIfEmpty] = None
    """Devices of this machine to work on at once, such as `cuda:0,cuda:1`, each with a worker
    process of its own; "" for the one that `device` names."""
    address: Annotated[str | None, NoneIfEmpty] = None
    """Address of the Ray cluster, such as `10.0.0.1:6379`; "" finds the one that runs on this
    machine, or starts one."""
    workers: Annotated[str, AfterValidator(_is_number)] = "auto"
    """Workers on the Ray cluster that each load the stage's half; `auto`: one a GPU, without GPUs
    one a node."""
    gpus_per_worker: Positive = 1.0
    """GPUs that Ray sets aside for each worker, where the cluster has any."""

    shard: Annotated[str | None, AfterValidator(_is_shard), NoneIfEmpty] = None
    """Do only the I-th of N shares, counted from 1, as `3/16`; which share a clip is in is decided
    by the digest of its video, and does not change when the list of videos grows."""
    spool_gib: Positive = 20.0
    """GiB of this machine's disk that videos of object stores may fill while they are worked on."""

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        for name in ("address", "workers", "gpus_per_worker"):
            if (
                self.engine != "ray"
                and getattr(self, name) != type(self).model_fields[name].default
            ):
                raise ValueError(f"{name} has no effect unless engine is ray")
        if self.engine == "ray" and self.devices:
            raise ValueError("devices is for engine local; with ray, set workers")
        return self

    @property
    def device_names(self) -> list[str]:
        """The devices to work on at once; none where only one is."""
        return self.devices.split(",") if self.devices else []

    @property
    def is_distributed(self) -> bool:
        """Whether other processes than this one are to load the halves."""
        return self.engine == "ray" or self.devices is not None


class Limits(Table):
    """When a run stops early, and which faults it accepts. Part of no key."""

    limit: Annotated[int | None, Field(ge=1), NoneIfZero] = None
    """Most clips that one run makes (`caption`: most captions); 0 for all."""
    max_hours: Annotated[float | None, Field(gt=0), NoneIfZero] = None
    """Hours after which a run starts no more work, both stages of `run` together; 0 for no
    limit."""
    min_free_gib: Annotated[float, Field(ge=0)] = 2.0
    """GiB to keep free on the cache's disk; a run ends before it uses them."""
    loop_phrases: Annotated[int, Field(ge=2)] = 3
    """A caption gets the flag `looping` when a phrase of three or more tokens is repeated this many
    times in a row."""
    loop_words: Annotated[int, Field(ge=2)] = 4
    """The same for a single word."""
    max_words: Annotated[int | None, Field(ge=1), NoneIfZero] = None
    """A caption of more words gets the flag `too_long` and is made once more; 0 for no limit."""
    min_words: Annotated[int, Field(ge=0)] = 0
    """A caption of fewer words gets the flag `too_short` and is made once more."""
    fail_on_known: bool = False
    """End with exit status 1 also for clips that failed in earlier runs and are skipped now."""
    strict: bool = False
    """Fail a clip if anything went wrong when it was decoded; else the fault is only noted."""
