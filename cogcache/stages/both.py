"""Runs the two stages one after the other, each as a process of its own.

A process that has ended is the only proof that its memory was given back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

from cogcache.catalog import Catalog, Stage
from cogcache.settings import Limits, Settings, templates
from cogcache.system import CachePaths, asking_to_end, starter_pipe
from cogcache.video import WHOLE, Span


@dataclass(frozen=True)
class Hours:
    """The hours that both stages have together, counted from when this object is made."""

    most: float | None
    began_s: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float | None:
        """Hours that are left; None for any."""
        if self.most is None:
            return None
        return max(self.most - (time.monotonic() - self.began_s) / 3600, 0.0)

    @property
    def are_over(self) -> bool:
        """Whether nothing is left."""
        return self.left == 0.0


@dataclass(frozen=True, kw_only=True)
class StageRequest:
    """What one stage, or both, are asked for."""

    stage: Stage = "extract"
    cache: Path
    settings: Settings
    videos: tuple[str, ...] = ()
    """None of them stands for all that are cached, in stage two."""
    spans: tuple[Span, ...] = ()
    retry_failed: bool = False
    follow: bool = False
    catalog_path: Path | None = None
    features: str | None = None
    show: bool | None = None
    """Whether captions are shown as they come; None: where they are few."""

    def to_json(self) -> str:
        """Return the request as another process reads it."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["settings"] = self.settings.model_dump(mode="json")
        return json.dumps(fields, default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the request that a text holds."""
        fields: dict[str, Any] = json.loads(text)
        settings = Settings.model_validate_json(json.dumps(fields.pop("settings")))
        for name in ("cache", "catalog_path"):
            fields[name] = None if fields[name] is None else Path(fields[name])
        fields["videos"] = tuple(fields["videos"])
        fields["spans"] = tuple((start_s, end_s) for start_s, end_s in fields["spans"])
        return cls(settings=settings, **fields)


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage's process ended with, and what it reported."""

    exit_status: int
    report: dict[str, Any] | None
    """None where an error ended it, or a signal."""


def second_limits(settings: Settings, hours: Hours) -> Limits:
    """Return the limits of stage two in a run of both: what is left of the time, clips in captions.

    A limit counts the clips of such a run; each of them is to get all its captions.
    """
    limits = settings.limits
    captions = len(settings.prompts) * settings.generation.n
    limit = None if limits.limit is None else limits.limit * captions
    return limits.model_copy(update={"max_hours": hours.left, "limit": limit})


def run_both(
    request: StageRequest,
    tell: Callable[[Stage, StageResult], None],
    *,
    quiet: bool = False,
    verbose: bool = False,
) -> int:
    """Run stage one, then stage two on the same clips; return the exit status of both.

    Args:
        request: what is asked for; its `stage` does not matter.
        tell: is called when a stage has ended.
        quiet: have them show no captions.
        verbose: have them log what they do.

    Raises:
        ConfigError: a prompt needs captions that neither this run nor the catalog has.
    """
    settings, hours = request.settings, Hours(request.settings.limits.max_hours)
    check_chains(request.cache, settings)
    first = ask_stage(replace(request, stage="extract"), quiet=quiet, verbose=verbose)
    tell("extract", first)
    if first.exit_status not in (0, 1) or hours.are_over:
        return first.exit_status
    limited = settings.model_copy(update={"limits": second_limits(settings, hours)})
    # What is whole in this run is not to be captioned in the pieces of another one.
    is_cut = request.spans or settings.clips.segment_s or settings.clips.scenes
    spans = request.spans if is_cut else (WHOLE,)
    second = ask_stage(
        replace(request, stage="caption", settings=limited, spans=spans),
        quiet=quiet,
        verbose=verbose,
    )
    tell("caption", second)
    return max(first.exit_status, second.exit_status)


def check_chains(cache: Path, settings: Settings) -> None:
    """Check that the catalog has the captions that prompts name and no prompt of this run makes.

    Raises:
        ConfigError: there are none of them.
    """
    needed = templates.made_elsewhere(settings.prompts)
    if not needed:
        return
    known: list[str] = []
    if CachePaths(cache).catalog.is_file():
        with Catalog(CachePaths(cache).catalog) as catalog:
            known = catalog.captions.prompt_names()
    for missing, name in needed.items():
        if missing not in known:
            there = sorted({*settings.prompts, *known} - {name})
            raise templates.no_such_caption(missing, name, there)


def ask_stage(request: StageRequest, *, quiet: bool = False, verbose: bool = False) -> StageResult:
    """Run one stage in a process of its own and return what it reported."""
    ours, theirs = os.pipe()
    arguments = [*(["--verbose"] if verbose else []), "stage", f"--result-fd={theirs}"]
    arguments += ["--quiet"] if quiet else []
    try:
        status = run_stage(arguments, stdin=request.to_json(), passed=theirs)
    finally:
        os.close(theirs)
        with os.fdopen(ours, encoding="utf-8") as pipe:
            text = pipe.read()
    return StageResult(status, json.loads(text) if text else None)


def run_stage(
    arguments: Sequence[str], *, stdin: str | None = None, passed: int | None = None
) -> int:
    """Run `cogcache ARGUMENTS` in a process of its own and return its exit status.

    SIGINT, SIGTERM and SIGHUP are handed on, so that the stage finishes what is in hand; the stage
    is in a session of its own, or a terminal would send it the signal a second time.

    Args:
        arguments: of the command line.
        stdin: what the process reads; None for nothing.
        passed: a file descriptor that it gets.

    Returns:
        What the stage ended with; 128 and the signal's number where a signal ended it, or was
        received meanwhile. A stage that was asked to stop has left its work in order, but what
        follows it must not start.
    """
    command = [sys.executable, "-m", "cogcache", *arguments]
    with _HandedOn() as signals, starter_pipe() as (pipe, environment):
        stage = subprocess.Popen(
            command,
            start_new_session=True,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            pass_fds=[each for each in (passed, pipe) if each is not None],
            env=environment,
        )
        signals.go_to(stage)
        stage.communicate(None if stdin is None else stdin.encode())
        status = stage.returncode
    if signals.received:
        return 128 + signals.received[0]
    return 128 - status if status < 0 else status


class _HandedOn:
    """Hands the signals that ask this process to end on to a stage, while a `with` block runs.

    It is entered before the stage starts: a signal just before that would stop only this process.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._early: list[int] = []
        self._stage: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._before = {each: signal.signal(each, self._hand_on) for each in asking_to_end()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def go_to(self, stage: subprocess.Popen[bytes]) -> None:
        """Hand signals on to a stage, those that came before it too."""
        self._stage = stage
        for number in self._early:
            stage.send_signal(number)

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)
        if self._stage is None:
            self._early.append(number)
        else:
            self._stage.send_signal(number)
